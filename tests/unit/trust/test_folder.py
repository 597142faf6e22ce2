from __future__ import annotations

import os
from pathlib import Path

import pytest

from overproof.core.errors import TrustError, UsageError
from overproof.trust.folder import Folder, check_name, check_names


def test_listing(tmp_path: Path) -> None:
    (tmp_path / "b/empty/inner").mkdir(parents=True)
    (tmp_path / "b/file").write_text("x")
    (tmp_path / "B2").write_text("yy")
    (tmp_path / ".hidden").write_text("")
    found = Folder.list(tmp_path)
    assert found.files == (".hidden", "B2", "b/file")
    assert found.empty == ("b/empty/inner",)
    assert found.size("B2") == 2
    assert found.read("B2", 2) == b"yy"
    with pytest.raises(TrustError, match="more than 1 bytes"):
        found.read("B2", 1)


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", "./a", "a/./b", "a//b", "a/",
        "a\\b", "C:/x", "C:x", "a\nb", "a\x00b", "a\x7fb", "a\u0085b", "\udcff", "x" * 1025,
    ],
)  # fmt: skip
def test_bad_names(name: str) -> None:
    with pytest.raises(TrustError):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "a/b.c", "...", "a..b", ".a", "ä", "a b", "模型"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "pair", [("a", "a"), ("a", "A"), ("ß", "SS"), ("é", "e\u0301"), ("x/Y", "X/y")]
)
def test_colliding_names(pair: tuple[str, str]) -> None:
    with pytest.raises(TrustError):
        check_names(pair)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(TrustError, match="symbolic links"):
        Folder.list(tmp_path)
    (tmp_path / "link").unlink()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(TrustError, match="symbolic links"):
        Folder.list(tmp_path)
    (tmp_path / "loop").unlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TrustError, match="regular files"):
        Folder.list(tmp_path)


def test_names_on_disk(tmp_path: Path) -> None:
    for name in (b"a\\b", b"a\nb", b"a:b", b"\xff"):
        path = os.fsencode(tmp_path) + b"/" + name
        Path(os.fsdecode(path)).write_text("")
        with pytest.raises(TrustError):
            Folder.list(tmp_path)
        Path(os.fsdecode(path)).unlink()
    (tmp_path / "readme").write_text("")
    (tmp_path / "README").write_text("")
    with pytest.raises(TrustError, match="case"):
        Folder.list(tmp_path)


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Folder.list(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        Folder.list(tmp_path / "file")
