"""JSONL: every bad line is one bad record, with its number, its reason and its raw data."""

import base64
import hashlib
from pathlib import Path

import pytest

from overproof.core.errors import UsageError
from overproof.data.lines import KEPT_BYTES, Line
from overproof.data.read import MAX_DEPTH, open_source, parse_object
from overproof.data.records import RecordError

LIMIT = 64_000


def lines(folder: Path, data: bytes, limit: int = LIMIT) -> list[Line]:
    path = folder / "data.jsonl"
    path.write_bytes(data)
    return list(open_source(path, limit).read())


def fault(line: Line) -> RecordError:
    assert isinstance(line.value, RecordError)
    return line.value


def test_good_lines_are_read_in_order_with_their_numbers(tmp_path: Path) -> None:
    got = lines(tmp_path, b'{"prompt": "a"}\n\n  \r\n{"prompt": "\xc3\xa9"}\r\n{"text": "c"}')
    assert [(line.number, line.value) for line in got] == [
        (1, {"prompt": "a"}),
        (4, {"prompt": "é"}),
        (5, {"text": "c"}),
    ]
    assert got[1].raw.to_json() == {"raw": '{"prompt": "é"}'}
    assert got[-1].done == (tmp_path / "data.jsonl").stat().st_size


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert lines(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\n')[0].value == {"prompt": "a"}


@pytest.mark.parametrize(
    "end",
    ['{"prompt": "b', '{"prompt": "b"', '{"pro', "{", '{"prompt": "b", "x": tr', '{"x": {"y": 1}'],
)
def test_a_file_cut_in_its_last_line_is_told(tmp_path: Path, end: str) -> None:
    good, bad = lines(tmp_path, b'{"prompt": "a"}\n' + end.encode())
    assert good.value == {"prompt": "a"}
    assert (bad.number, fault(bad).reason) == (2, "read:truncated")
    assert bad.raw.to_json() == {"raw": end}


def test_a_file_cut_inside_a_character_is_told_and_its_bytes_kept(tmp_path: Path) -> None:
    bad = lines(tmp_path, '{"prompt": "é'.encode()[:-1])[0]
    assert fault(bad).reason == "read:truncated"
    assert base64.b64decode(bad.raw.to_json()["raw_base64"]) == '{"prompt": "é'.encode()[:-1]


def test_bad_json_in_the_middle_is_not_called_cut(tmp_path: Path) -> None:
    bad, good = lines(tmp_path, b'{"prompt": "a"\n{"prompt": "b"}\n')
    assert fault(bad).reason == "read:not-json"
    assert "at character 14" in fault(bad).what
    assert good.value == {"prompt": "b"}


def test_bad_json_in_a_whole_last_line_is_not_called_cut(tmp_path: Path) -> None:
    assert fault(lines(tmp_path, b'{"prompt": a}')[0]).reason == "read:not-json"


def test_invalid_utf8_names_the_byte_in_line_and_file(tmp_path: Path) -> None:
    good, bad, after = lines(tmp_path, b'{"prompt": "a"}\n{"prompt": "\xff"}\n{"prompt": "b"}\n')
    assert fault(bad).reason == "read:not-utf8"
    assert "byte 12 of the line, 0xff" in fault(bad).what
    assert "starts at byte 16" in fault(bad).what
    assert base64.b64decode(bad.raw.to_json()["raw_base64"]) == b'{"prompt": "\xff"}'
    assert (good.value, after.value) == ({"prompt": "a"}, {"prompt": "b"})


def test_two_megabytes_in_a_line_are_skipped_with_size_and_digest(tmp_path: Path) -> None:
    long = b'{"prompt": "' + b"x" * (2 << 20) + b'"}'
    bad, good = lines(tmp_path, long + b'\n{"prompt": "b"}\n')
    assert fault(bad).reason == "read:too-long"
    assert f"{len(long):,} bytes, the limit is {LIMIT:,}" in fault(bad).what
    assert bad.raw.to_json() == {
        "raw": long[:KEPT_BYTES].decode(),
        "raw_bytes": len(long),
        "raw_sha256": hashlib.sha256(long).hexdigest(),
    }
    assert (good.number, good.value) == (2, {"prompt": "b"})


def test_an_over_long_last_line_is_skipped_too(tmp_path: Path) -> None:
    long = b"x" * (LIMIT + 1)
    bad = lines(tmp_path, long)[0]
    assert (fault(bad).reason, bad.raw.length) == ("read:too-long", LIMIT + 1)
    assert bad.raw.sha256 == hashlib.sha256(long).hexdigest()


def test_a_line_at_the_limit_is_read(tmp_path: Path) -> None:
    line = b'{"prompt": "abc"}'
    assert lines(tmp_path, line + b"\n", limit=len(line))[0].value == {"prompt": "abc"}
    assert fault(lines(tmp_path, line + b"\n", limit=len(line) - 1)[0]).reason == "read:too-long"


@pytest.mark.parametrize(
    ("data", "reason", "says"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "read:duplicate-key", "'c'"),
        (b'{"a": NaN}', "read:not-finite", "NaN"),
        (b"7", "read:not-an-object", "a number"),
        (b'"text"', "read:not-an-object", "a text"),
        (b"null", "read:not-an-object", "null"),
        (b"[" * 100_000, "read:too-deep", str(MAX_DEPTH)),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "read:too-deep", "levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "read:not-json", "number is too long"),
        (b'{"a": "\x00"}', "read:not-json", "control character"),
        (b"prompt,text\r", "read:not-json", "expecting value"),
    ],
)
def test_nonsense_has_a_reason(data: bytes, reason: str, says: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_object(data)
    assert caught.value.reason == reason
    assert says in caught.value.what


def test_nesting_up_to_the_limit_is_read() -> None:
    inner = MAX_DEPTH - 1
    assert parse_object(b'{"a": ' + b"[" * inner + b"]" * inner + b"}")


def test_many_brackets_side_by_side_are_not_deep() -> None:
    assert parse_object(b'{"a": [' + b",".join([b"[]"] * 100) + b"]}")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty"):
        lines(tmp_path, b"")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04", "zip"),
        ("a".encode("utf-16"), "UTF-16"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ],
)
def test_other_kinds_of_file_are_named(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        lines(tmp_path, data)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        open_source(tmp_path / "none.jsonl", LIMIT)
    with pytest.raises(UsageError, match="is a folder"):
        open_source(tmp_path, LIMIT)
    with pytest.raises(UsageError, match="no regular file"):
        open_source(Path("/dev/null"), LIMIT)


def test_a_false_parquet_name_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(UsageError, match="no Parquet file"):
        open_source(path, LIMIT)
