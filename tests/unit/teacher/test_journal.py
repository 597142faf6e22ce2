from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from overproof.teacher.journal import Journal


def line(key: str, tokens: list[int], signals: bytes = b"", **changes: object) -> bytes:
    row = {"key": key, "tokens": tokens, "bytes": len(signals), "crc32": zlib.crc32(signals)}
    return json.dumps(row | changes).encode() + b"\n" + signals


FIRST = line("a", [1], b"\x00\n{\n")


def read(path: Path) -> dict[str, tuple[list[int], bytes]]:
    """What a journal holds when it is opened again."""
    journal = Journal(path)
    found = {key: (entry.tokens, journal.signals(key)) for key, entry in journal.done.items()}
    journal.close()
    return found


def test_a_journal_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path)
    first.add("a", [1, 2], b"\n\n{}")
    first.add("b\n\u2028", [3])
    assert first.signals("a") == b"\n\n{}"
    first.add("c", [4], bytes(range(256)))  # after a read in the middle of the file
    assert first.signals("c") == bytes(range(256))
    first.close()
    wanted = {
        "a": ([1, 2], b"\n\n{}"),
        "b\n\u2028": ([3], b""),
        "c": ([4], bytes(range(256))),
    }
    assert read(path) == wanted
    again = Journal(path)
    again.add("d", [])
    again.close()
    assert read(path) == wanted | {"d": ([], b"")}


@pytest.mark.parametrize("size", range(len(line("b", [1, 2], b"signals"))))
def test_an_answer_cut_anywhere_is_dropped_and_written_again(tmp_path: Path, size: int) -> None:
    path = tmp_path / "journal"
    path.write_bytes(FIRST + line("b", [1, 2], b"signals")[:size])
    journal = Journal(path)
    assert list(journal.done) == ["a"]
    journal.add("b", [9])
    journal.close()
    assert read(path) == {"a": ([1], b"\x00\n{\n"), "b": ([9], b"")}


@pytest.mark.parametrize(
    "bad",
    [
        b"nothing\n",
        b"\x00\x00\x00\n",
        b"[1]\n",
        b'{"key": "b"}\n',
        line("b", [1], b"four", bytes=3),
        line("b", [1], b"four", bytes=-1),
        line("b", [1], b"four", bytes="4"),
        line("b", [1], b"four", crc32=1),
        line("b", [1], b"four").replace(b"four", bytes(4)),
        line("b", 7),  # type: ignore[arg-type]
    ],
)
def test_a_damaged_answer_is_told_not_thrown(tmp_path: Path, bad: bytes) -> None:
    """Blocks of zeros are what a power cut leaves; the answers after them are drawn again."""
    path = tmp_path / "journal"
    path.write_bytes(FIRST + bad + line("c", [1]))
    for _ in range(2):
        assert list(read(path)) == ["a"]
