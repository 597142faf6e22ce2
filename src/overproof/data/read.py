"""Reading records from JSONL or Parquet in bounded memory, with every bad record kept.

A source yields one `Line` for each line or row: its value, or the reason why it has none, and
in both cases the raw data, so that nothing is lost.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from overproof.core.errors import StageError, UsageError
from overproof.data.records import RecordError, kind_of

CHUNK_BYTES = 1 << 20  # read size while an over-long line is skipped
KEPT_BYTES = 4096  # how much of an over-long line is kept in the list of rejected records
MAX_DEPTH = 32  # levels of nesting in a record; a conversation needs three
ROWS_AT_ONCE = 64  # Parquet rows decoded together; a row may be large
_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"
# First bytes of files that are often passed by mistake, and what they are.
_OTHER_FILES = {
    b"\x1f\x8b": "gzip data; unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd data; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8 first",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8 first",
}


@dataclass(frozen=True)
class Raw:
    """The bytes of a record as they came, or their beginning where they are too many.

    Attributes:
        data: the bytes kept.
        length: bytes there were.
        sha256: digest of all of them, given only when `data` is cut.
    """

    data: bytes
    length: int
    sha256: str | None = None

    @classmethod
    def of(cls, data: bytes, limit: int) -> Raw:
        """Keep `data` whole up to `limit` bytes, else its beginning and its digest."""
        if len(data) <= limit:
            return cls(data, len(data))
        return cls(data[:KEPT_BYTES], len(data), hashlib.sha256(data).hexdigest())

    def as_json(self) -> dict[str, Any]:
        """`raw` as text or `raw_base64` where it is not UTF-8, with what a cut leaves out."""
        try:
            row: dict[str, Any] = {"raw": self.data.decode()}
        except UnicodeDecodeError:
            row = {"raw_base64": base64.b64encode(self.data).decode()}
        if self.sha256 is not None:
            row |= {"raw_bytes": self.length, "raw_sha256": self.sha256}
        return row


@dataclass(frozen=True)
class Line:
    """One line of a JSONL file or one row of a Parquet file.

    Attributes:
        number: line or row, counted from 1.
        raw: what stood there.
        value: the JSON object, or why there is none.
        done: units of the source read up to here, `unit` of the source.
    """

    number: int
    raw: Raw
    value: Mapping[str, Any] | RecordError
    done: int


class Source(Protocol):
    """A file of records.

    Attributes:
        total: its size in `unit`.
        unit: `B` or `rows`.
    """

    @property
    def total(self) -> int:
        """Size in `unit`."""

    @property
    def unit(self) -> str:
        """What `total` and `Line.done` count."""

    def read(self) -> Iterator[Line]:
        """Every line or row, in order."""


def open_source(path: Path, max_line_bytes: int) -> Source:
    """Recognise a file of records by its first bytes.

    Args:
        path: a JSONL file (UTF-8, one JSON object a line) or a Parquet file.
        max_line_bytes: a longer line is rejected without being loaded.

    Raises:
        UsageError: no such file, an empty file, or one of another kind.
        StageError: the file cannot be read.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, wanted a JSONL or Parquet file")
    if not path.exists():
        raise UsageError(f"no file at {path}")
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise StageError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise UsageError(f"{path} is empty", hint="wanted one JSON object a line, or Parquet")
    if head == _PARQUET:
        return ParquetFile(path, max_line_bytes)
    for magic, what in _OTHER_FILES.items():
        if head.startswith(magic):
            raise UsageError(f"{path} holds {what}")
    if path.suffix == ".parquet":
        raise UsageError(f"{path} is no Parquet file", details=[f"it begins with {head!r}"])
    return JsonLines(path, max_line_bytes)


@dataclass(frozen=True)
class JsonLines:
    """JSONL: UTF-8, one JSON object a line; blank lines are no records and are passed over."""

    path: Path
    max_line_bytes: int

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    @property
    def unit(self) -> str:
        """`total` and `Line.done` count bytes."""
        return "B"

    def read(self) -> Iterator[Line]:
        """Every line that is not blank.

        Raises:
            StageError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as stream:
                yield from self._lines(stream)
        except OSError as error:
            raise StageError(f"cannot read {self.path}: {error.strerror}") from error

    def _lines(self, stream: BinaryIO) -> Iterator[Line]:
        number = offset = 0
        while data := stream.readline(self.max_line_bytes + 1):
            number += 1
            if number == 1:
                data = data.removeprefix(_BOM)
            whole = data.endswith(b"\n")
            if not whole and len(data) > self.max_line_bytes:
                yield _skip_line(data, stream, number, self.max_line_bytes)
            elif data.strip():
                yield _decode_line(data, number, offset, stream.tell())
            offset = stream.tell()


def _skip_line(data: bytes, stream: BinaryIO, number: int, limit: int) -> Line:
    digest, length, kept = hashlib.sha256(), 0, data[:KEPT_BYTES]
    while data:
        whole = data.endswith(b"\n")
        digest.update(data.removesuffix(b"\n"))
        length += len(data) - whole
        data = b"" if whole else stream.readline(CHUNK_BYTES)
    fault = RecordError("read:too-long", f"the line has {length:,} bytes, the limit is {limit:,}")
    return Line(number, Raw(kept, length, digest.hexdigest()), fault, stream.tell())


def _decode_line(data: bytes, number: int, offset: int, done: int) -> Line:
    raw = data.rstrip(b"\r\n")
    kept = Raw(raw, len(raw))
    try:
        return Line(number, kept, parse_object(raw), done)
    except RecordError as error:
        fault = error
    if not data.endswith(b"\n") and _is_cut(raw):
        fault = RecordError(
            "read:truncated", "the file ends in the middle of this record, without a line end"
        )
    elif fault.reason == "read:not-utf8":
        fault = RecordError(fault.reason, f"{fault.what}; the line starts at byte {offset:,}")
    return Line(number, kept, fault, done)


def _is_cut(raw: bytes) -> bool:
    """Whether a last line without a line end looks like the beginning of an object."""
    opened, closed = raw.count(b"{"), raw.count(b"}")
    return raw.lstrip().startswith(b"{") and (opened > closed or not raw.rstrip().endswith(b"}"))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RecordError("read:duplicate-key", f"the key {twice!r} stands twice in one object")
    return found


def _constant(name: str) -> NoReturn:
    raise RecordError("read:not-finite", f"{name} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in one line.

    Raises:
        RecordError: no UTF-8 (with the byte's offset in the line), no JSON, a key twice in one
            object, NaN or Infinity, nested more than `MAX_DEPTH` deep, or no object.
    """
    try:
        text = data.decode()
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise RecordError(
            "read:not-utf8",
            f"byte {error.start} of the line, 0x{data[error.start]:02x}, is no UTF-8",
        ) from error
    except json.JSONDecodeError as error:
        raise RecordError(
            "read:not-json", f"{error.msg[0].lower()}{error.msg[1:]} at character {error.pos}"
        ) from error
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise RecordError("read:not-json", f"a number is too long: {error}") from error
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise _too_deep()
    if not isinstance(value, dict):
        raise RecordError("read:not-an-object", f"the line is {kind_of(value)}, wanted an object")
    return value


def _too_deep() -> RecordError:
    return RecordError("read:too-deep", f"nested more than {MAX_DEPTH} levels deep")


def _depth(value: Any) -> int:
    """Levels of nesting, counted level by level: no recursion that a record could exhaust."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            inner for item in level for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


@dataclass(frozen=True)
class ParquetFile:
    """Parquet: one record a row, the fields as columns."""

    path: Path
    max_line_bytes: int

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
        return _bytes_as_json(value)
    return value


def _bytes_as_json(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
