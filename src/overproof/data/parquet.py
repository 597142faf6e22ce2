"""Parquet: one record a row, the fields as columns, decoded a few rows at a time."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from overproof.core.errors import StageError, UsageError
from overproof.data.lines import Line, Raw
from overproof.data.records import RecordError

MAGIC = b"PAR1"  # first and last four bytes of a Parquet file
ROWS_AT_ONCE = 64  # rows decoded together; a row may be large


@dataclass(frozen=True)
class ParquetFile:
    """Parquet: one record a row, the fields as columns."""

    path: Path
    max_line_bytes: int

    @classmethod
    def open(cls, path: Path, max_line_bytes: int) -> ParquetFile:
        """A file whose columns are told apart by their names.

        Raises:
            UsageError: two columns of one name: a row has room for one of them only.
            StageError: the file is cut or damaged.
        """
        source = cls(path, max_line_bytes)
        with source._open() as file:
            counts = Counter(file.schema_arrow.names)
        twice = [f"{name!r}: {count} columns" for name, count in counts.items() if count > 1]
        if twice:
            raise UsageError(
                f"{path} has columns of the same name",
                details=twice,
                hint="rename or drop all but one of them: readers disagree which one counts",
            )
        return source

    @property
    def total(self) -> int:
        """Rows of the file."""
        with self._open() as file:
            return int(file.metadata.num_rows)

    @property
    def unit(self) -> str:
        """`total` and `Line.done` count rows."""
        return "rows"

    def read(self) -> Iterator[Line]:
        """Every row, `ROWS_AT_ONCE` in memory.

        Raises:
            StageError: the file is cut or damaged; the message says after which row.
        """
        number = 0
        with self._open() as file:
            try:
                for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                    for row in range(batch.num_rows):
                        number += 1
                        yield self._row(batch.slice(row, 1), number)
            except (pa.ArrowException, OSError) as error:
                raise StageError(
                    f"{self.path} is damaged after row {number}", details=[str(error)]
                ) from error

    def _open(self) -> Any:
        try:
            return pq.ParquetFile(self.path)
        except (pa.ArrowException, OSError) as error:
            raise StageError(
                f"{self.path} is no readable Parquet file; it may be cut",
                details=[str(error)],
                hint="fetch the file again",
            ) from error

    def _row(self, row: Any, number: int) -> Line:
        value: dict[str, Any] | RecordError
        try:
            value = plain(row.to_pylist()[0])
            data = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            value = RecordError("read:not-utf8", f"a column is no UTF-8: {error.reason}")
            data = _column_bytes(row)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            # A date that Python has no form for, such as one in nanoseconds.
            value = RecordError("read:wrong-value", f"a column has no JSON form: {error}")
            data = _column_bytes(row)
        if len(data) > self.max_line_bytes:
            value = RecordError(
                "read:too-long",
                f"the row has {len(data):,} bytes as JSON, the limit is {self.max_line_bytes:,}",
            )
        return Line(number, Raw.of(data, self.max_line_bytes), value, number)


def _column_bytes(row: Any) -> bytes:
    """The text columns of one row as bytes, `name=value`, for a row that cannot be decoded."""
    parts = []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            parts.append(name.encode() + b"=" + (column.cast(pa.binary())[0].as_py() or b""))
    return b"\n".join(parts)


def plain(value: Any) -> Any:
    """A Parquet value as JSON: dates in ISO 8601, decimals as text, NaN as null.

    NaN is how data frames write a missing number, so it is null here and not a fault. Bytes are
    text that some writers do not mark as such; where they are no UTF-8 they become an object,
    which no check takes for a text.
    """
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return _bytes_to_json(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)  # a UUID, say


def _bytes_to_json(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
