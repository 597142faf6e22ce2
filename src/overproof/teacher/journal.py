"""The journal of finished answers: nothing that the teacher said is ever drawn twice.

An answer is a JSON line with its key and its tokens, and after it the bytes of its signals, as
many as the line says and with the CRC-32 that it gives.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple


class Entry(NamedTuple):
    """An answer in the journal.

    Attributes:
        tokens: of the answer.
        offset, size: where its signals lie in the file; no bytes if none were kept.
    """

    tokens: list[int]
    offset: int
    size: int


class Journal:
    """Finished answers, flushed as they come, read again after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Entry] = {}
        if path.exists():
            self._recover()
        self._stream = path.open("r+b" if path.exists() else "w+b")

    def add(self, key: str, tokens: list[int], signals: bytes = b"") -> None:
        """Keep one answer. A killed process loses at most the one being written."""
        line = {
            "key": key,
            "tokens": tokens,
            "bytes": len(signals),
            "crc32": zlib.crc32(signals),
        }
        head = json.dumps(line).encode() + b"\n"
        offset = self._stream.seek(0, os.SEEK_END) + len(head)
        self._stream.write(head + signals)
        self._stream.flush()
        self.done[key] = Entry(tokens, offset, len(signals))

    def signals(self, key: str) -> bytes:
        """The bytes that were kept beside an answer."""
        entry = self.done[key]
        self._stream.seek(entry.offset)
        return self._stream.read(entry.size)

    def close(self) -> None:
        """Flush to disk."""
        os.fsync(self._stream.fileno())
        self._stream.close()

    def _recover(self) -> None:
        """Read what is whole; cut off what a kill or a power cut left, it is drawn again."""
        whole = 0
        with self.path.open("rb") as stream:
            while (found := _read(stream)) is not None:
                key, entry = found
                self.done[key] = entry
                whole = stream.tell()
        os.truncate(self.path, whole)


def _read(stream: BinaryIO) -> tuple[str, Entry] | None:
    """The next answer of a journal; None at its end or if it is not whole."""
    line = stream.readline()
    try:
        row: Any = json.loads(line) if line.endswith(b"\n") else None
        if not isinstance(row, dict):
            return None
        key, tokens, size, crc = (row[name] for name in ("key", "tokens", "bytes", "crc32"))
        offset = stream.tell()
        signals = stream.read(size)
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(tokens, list) or len(signals) != size or zlib.crc32(signals) != crc:
        return None
    return str(key), Entry(tokens, offset, size)
