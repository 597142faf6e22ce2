"""The answers of a finished run, read from their file when they are looked at.

A million answers as Python numbers fill the memory of a small machine; their file does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from overproof.teacher.example import Example

CHUNK = 1 << 24  # bytes looked through at once for the ends of lines
LINE_END = 10


class Examples(Sequence[Example]):
    """The rows of a file of answers; a slice is a view of the same file.

    Memory: 8 bytes a row.

    Args:
        path: one JSON object a line, the last one ended too.
        ends: of each row, the byte behind it, after the byte where the first begins; None: of all.
    """

    def __init__(self, path: Path, ends: NDArray[np.int64] | None = None) -> None:
        self._path = path
        self._bytes = _mapped(path)
        self._ends = _ends(self._bytes) if ends is None else ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        """An example, or a run of them.

        Raises:
            IndexError: there is none of this number.
            ValueError: a slice that leaves some out.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise ValueError(f"got a step of {step}, wanted 1: examples are a run of rows")
            return Examples(self._path, self._ends[start : max(start, stop) + 1])
        number = range(len(self))[index]
        line = self._bytes[self._ends[number] : self._ends[number + 1]].tobytes()
        return example_of(json.loads(line))

    def __iter__(self) -> Iterator[Example]:
        return (self[number] for number in range(len(self)))

    def __reduce__(self) -> Any:
        """For another process: the file, not its bytes."""
        return Examples, (self._path, np.array(self._ends))


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write examples as `Examples` reads them; returns the tokens of their answers."""
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for one in examples:
            row = {
                "key": one.key,
                "teacher": one.teacher,
                "prompt": one.prompt,
                "answer": one.answer,
            }
            stream.write(json.dumps(row) + "\n")
            count += len(one.answer)
    return count


def example_of(row: dict[str, Any]) -> Example:
    """What a row says."""
    return Example(row["key"], tuple(row["prompt"]), tuple(row["answer"]), row["teacher"])


def _mapped(path: Path) -> NDArray[np.uint8]:
    """The file's bytes; an empty file cannot be mapped."""
    if not path.stat().st_size:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "r")


def _ends(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    parts = [np.zeros(1, np.int64)]
    for start in range(0, len(text), CHUNK):
        found = np.flatnonzero(text[start : start + CHUNK] == LINE_END)
        parts.append(start + found.astype(np.int64) + 1)
    return np.concatenate(parts)
