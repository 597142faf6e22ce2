"""Arrays of a training set on the disk: written value after value, mapped by whoever reads them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMALL = 4096  # bytes of an array that is not worth a mapping


def array_file(folder: Path, array: str) -> Path:
    """Where an array of a training set lies."""
    return folder / f"{array}.npy"


def mapped(file: Path) -> NDArray[Any]:
    """A small array is read: one without a value cannot be mapped.

    Mapped to be written, as torch demands; what is written would stay in this process.
    """
    array: NDArray[Any] = np.load(file, mmap_mode="c" if file.stat().st_size > SMALL else None)
    return array


class Growing:
    """An array's file whose rows come one after another; the memory is that of those at hand.

    A full disk is an error here; in mapped memory it is a crash.

    Args:
        width: values a row, for an array of two dimensions.
    """

    def __init__(self, folder: Path, array: str, dtype: np.dtype[Any], *width: int) -> None:
        self._stream = array_file(folder, array).open("wb")
        self._dtype, self._width, self._rows = np.dtype(dtype), width, 0
        self._header()

    def add(self, rows: ArrayLike) -> None:
        """Rows more."""
        values = np.asarray(rows, self._dtype)
        self._stream.write(values.tobytes())
        self._rows += len(values)

    def _header(self) -> None:
        """NumPy's, which leaves room for a larger number of rows than is written."""
        descr = np.lib.format.dtype_to_descr(self._dtype)
        shape = (self._rows, *self._width)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._stream, header)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say how many there are."""
        with self._stream:
            if error is None:
                self._stream.seek(0)
                self._header()
