"""A file of sorted keys, 32 bytes each: the leaves of the record tree and the list to search."""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

from overproof.core.errors import TrustError
from overproof.data.records import KEY_BYTES


class Keys(Sequence[bytes]):
    """Keys in a file, read where they are: ten million take no memory of this process."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data) // KEY_BYTES

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._data[place * KEY_BYTES : (place + 1) * KEY_BYTES]


@contextmanager
def open_keys(path: Path) -> Iterator[Keys]:
    """The keys in a file, for as long as the block runs.

    Raises:
        TrustError: the file is no whole number of keys.
    """
    size = path.stat().st_size
    if size % KEY_BYTES:
        raise TrustError(
            f"{path} is damaged", details=[f"got {size} bytes, wanted a multiple of {KEY_BYTES}"]
        )
    if not size:  # an empty file cannot be mapped
        yield Keys(b"")
        return
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield Keys(data)


def holds(keys: Sequence[bytes], key: bytes) -> bool:
    """Whether a sorted sequence holds a key, by bisection."""
    place = bisect_left(keys, key)
    return place < len(keys) and keys[place] == key
