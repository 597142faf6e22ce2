"""A release folder as verification sees it: which names are there, and their bytes on demand."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from overproof.core.digest import sha256_file
from overproof.core.errors import StageError, TrustError, UsageError
from overproof.trust.strict import shown

MAX_NAME_BYTES = 1024  # a path of a release; Linux stops at 4,096, other systems sooner


def check_name(name: str) -> str:
    """A relative POSIX name that means the same file on every system.

    Raises:
        TrustError: absolute, leaves the folder, or has a backslash, colon or control character.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise TrustError("a name leaves the release folder or is not plain", details=[_got(name)])
    if any(sign in "\\:" or unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
        raise TrustError(
            "a name has a backslash, a colon or a control character", details=[_got(name)]
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        raise TrustError(f"a name has more than {MAX_NAME_BYTES} bytes", details=[_got(name)])
    return name


def check_names(names: Iterable[str]) -> None:
    """Check each name, and that no two are one file on a system that ignores case.

    Raises:
        TrustError: a bad name, the same name twice, or two that differ in case or form only.
    """
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", check_name(name)).casefold()
        if key in seen:
            same = seen[key] == name
            raise TrustError(
                "a name is given twice" if same else "two names differ in case only",
                details=[_got(name)] if same else [_got(seen[key]), _got(name)],
            )
        seen[key] = name


def _got(name: str) -> str:
    return f"got {shown(name)!r}"


@dataclass(frozen=True)
class Folder:
    """The names of a release, listed once.

    Attributes:
        files: POSIX names relative to `root`, sorted by code point.
        empty: folders without anything in them, which no manifest can bind.
    """

    root: Path
    files: tuple[str, ...]
    empty: tuple[str, ...]

    @classmethod
    def list(cls, root: Path) -> Folder:
        """List a release.

        Raises:
            UsageError: no such folder.
            TrustError: a link, a device, or a name that no release may have.
            StageError: a folder that cannot be read.
        """
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise UsageError(
                f"no release at {root}: it {what}", hint="give the folder that holds proof/"
            )
        files: list[str] = []
        empty: list[str] = []
        try:
            _walk(root, "", files, empty)
        except OSError as error:
            raise StageError(f"cannot read {root}", details=[str(error)]) from error
        check_names([*files, *empty])
        return cls(root, tuple(sorted(files)), tuple(sorted(empty)))

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a listed file of at most `limit` bytes.

        Raises:
            TrustError: it is longer.
            StageError: it cannot be read.
        """
        try:
            with (self.root / name).open("rb") as stream:
                data = stream.read(limit + 1)
        except OSError as error:
            raise _unreadable(self.root / name, error) from error
        if len(data) > limit:
            raise TrustError(f"{name} has more than {limit} bytes")
        return data

    def sha256(self, name: str) -> str:
        """Digest of a listed file, streamed.

        Raises:
            StageError: it cannot be read.
        """
        try:
            return sha256_file(self.root / name)
        except OSError as error:
            raise _unreadable(self.root / name, error) from error

    def size(self, name: str) -> int:
        """Length of a listed file, bytes."""
        try:
            return (self.root / name).stat().st_size
        except OSError as error:
            raise _unreadable(self.root / name, error) from error


def _walk(root: Path, prefix: str, files: list[str], empty: list[str]) -> None:
    with os.scandir(root / prefix) as entries:
        found = list(entries)
    for entry in found:
        name = prefix + entry.name
        if entry.is_symlink():
            raise TrustError("a release has no symbolic links", details=[_got(name)])
        if entry.is_dir():
            _walk(root, name + "/", files, empty)
        elif entry.is_file():
            files.append(name)
        else:
            raise TrustError("a release has regular files only", details=[_got(name)])
    if not found and prefix:
        empty.append(prefix.removesuffix("/"))


def _unreadable(path: Path, error: OSError) -> StageError:
    return StageError(f"cannot read {path}", details=[error.strerror or str(error)])
