"""The file of sorted keys."""

from pathlib import Path

import pytest

from overproof.core.errors import TrustError
from overproof.data.keys import holds, open_keys


def test_keys_are_a_sequence_over_the_file(tmp_path: Path) -> None:
    wanted = [bytes([i]) * 32 for i in (1, 3, 5)]
    path = tmp_path / "keys.bin"
    path.write_bytes(b"".join(wanted))
    with open_keys(path) as keys:
        assert list(keys) == wanted
        assert (keys[-1], keys[1:]) == (wanted[-1], wanted[1:])
        with pytest.raises(IndexError):
            keys[3]


def test_bisection_finds_each_key_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "keys.bin"
    path.write_bytes(b"".join(bytes([i]) * 32 for i in range(1, 100, 2)))
    with open_keys(path) as keys:
        assert all(holds(keys, bytes([i]) * 32) == bool(i % 2) for i in range(101))


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.bin"
    path.write_bytes(b"")
    with open_keys(path) as keys:
        assert len(keys) == 0 and not holds(keys, bytes(32))


def test_a_cut_file_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "keys.bin"
    path.write_bytes(bytes(63))
    with pytest.raises(TrustError, match="damaged"), open_keys(path):
        pass
