"""Reading records from JSONL or Parquet in bounded memory, with every bad record kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from overproof.core.errors import OverproofError, StageError, UsageError
from overproof.data import parquet
from overproof.data.lines import KEPT_BYTES, Line, Raw, Source
from overproof.data.records import RecordError, kind_of, lone_prompt, parse

CHUNK_BYTES = 1 << 20  # read size while an over-long line is skipped
MAX_DEPTH = 32  # levels of nesting in a record; a conversation needs three
_BOM = b"\xef\xbb\xbf"
# First bytes of files that are often passed by mistake, and what they are.
_OTHER_FILES = {
    b"\x1f\x8b": "gzip data; unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd data; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\xff\xfe": "UTF-16 text; convert it to UTF-8 first",
    b"\xfe\xff": "UTF-16 text; convert it to UTF-8 first",
}


def open_source(path: Path, max_line_bytes: int) -> Source:
    """Recognise a file of records by its first bytes.

    Args:
        path: a JSONL file (UTF-8, one JSON object a line) or a Parquet file.
        max_line_bytes: a longer line is rejected without being loaded.

    Raises:
        UsageError: no such file, an empty file, one of another kind, or Parquet with two columns
            of one name.
        StageError: the file cannot be read.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, wanted a JSONL or Parquet file")
    if not path.exists():
        raise UsageError(f"no file at {path}")
    if not path.is_file():
        raise UsageError(f"{path} is no regular file", hint="it is read more than once: copy it")
    try:
        with path.open("rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise StageError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise UsageError(f"{path} is empty", hint="wanted one JSON object a line, or Parquet")
    if head == parquet.MAGIC:
        return parquet.ParquetFile.open(path, max_line_bytes)
    for magic, what in _OTHER_FILES.items():
        if head.startswith(magic):
            raise UsageError(f"{path} holds {what}")
    if path.suffix == ".parquet":
        raise UsageError(f"{path} is no Parquet file", details=[f"it begins with {head!r}"])
    return JsonLines(path, max_line_bytes)


def lone_prompts(path: Path, max_line_bytes: int) -> Iterator[str]:
    """The prompt of every record that is one and can be read; certifying tells what the others are.

    Raises:
        see `open_source`.
    """
    for line in open_source(path, max_line_bytes).read():
        if isinstance(line.value, OverproofError):
            continue
        try:
            prompt = lone_prompt(parse(line.value).messages)
        except OverproofError:
            continue
        if prompt is not None:
            yield prompt


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
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
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
