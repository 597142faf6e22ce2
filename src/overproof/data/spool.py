"""Sorting by key on disk, in bounded memory.

Keys are SHA-256 and so spread evenly: 256 bins by the first byte hold equal shares, and one bin
at a time is sorted in memory. Ten million records of 1 kB need about 40 MB.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

_SEPARATOR = b"\t"  # stands in no JSON text of RFC 8785, where a tab is written \t


@dataclass(frozen=True, order=True)
class Entry:
    """One accepted record while it waits for its place.

    Ordered by key, then by content, then by line: which of two duplicates comes first does not
    depend on the order of the file unless they are equal in everything.

    Attributes:
        key: 64 hex digits.
        row: its canonical JSON row.
        number: line or row it came from.
        raw: JSON of its raw data.
    """

    key: str
    row: bytes
    number: int
    raw: bytes


class Spool:
    """Entries in, entries out in order. Used as a context; `folder` is emptied at the start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bins: dict[str, BinaryIO] = {}
        self._open = ExitStack()

    def __enter__(self) -> Spool:
        shutil.rmtree(self._folder, ignore_errors=True)  # what a killed run left
        self._folder.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def add(self, entry: Entry) -> None:
        """Put an entry into its bin."""
        name = entry.key[:2]
        if name not in self._bins:
            stream = (self._folder / name).open("wb")
            self._bins[name] = self._open.enter_context(stream)
        fields = (entry.key.encode(), entry.row, str(entry.number).encode(), entry.raw)
        self._bins[name].write(_SEPARATOR.join(fields) + b"\n")

    def sorted(self) -> Iterator[Entry]:
        """Every entry in order; nothing can be added after this."""
        self._open.close()
        for name in sorted(self._bins):
            with (self._folder / name).open("rb") as stream:
                yield from sorted(_entry(line) for line in stream)


def _entry(line: bytes) -> Entry:
    key, row, number, raw = line.rstrip(b"\n").split(_SEPARATOR)
    return Entry(key.decode(), row, int(number), raw)
