"""What a source of records yields: one `Line` for each line or row, bad ones included."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from overproof.data.records import RecordError

KEPT_BYTES = 4096  # how much of an over-long line is kept in the list of rejected records


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

    def to_json(self) -> dict[str, Any]:
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
