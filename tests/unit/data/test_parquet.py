"""Parquet files as pyarrow writes them, and damaged ones."""

import base64
import datetime
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overproof.core.errors import StageError, UsageError
from overproof.data.lines import Line
from overproof.data.parquet import ROWS_AT_ONCE, plain
from overproof.data.read import open_source
from overproof.data.records import RecordError

LIMIT = 64_000


def written(folder: Path, columns: Any, limit: int = LIMIT) -> list[Line]:
    path = folder / "data.parquet"
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
    source = open_source(path, limit)
    assert source.unit == "rows"
    got = list(source.read())
    assert len(got) == source.total
    return got


def test_prompts_are_read_with_row_numbers(tmp_path: Path) -> None:
    prompts = [f"prompt {i}" for i in range(ROWS_AT_ONCE + 3)]
    got = written(tmp_path, {"prompt": prompts, "industry": ["bank"] * len(prompts)})
    assert [line.number for line in got] == list(range(1, len(prompts) + 1))
    assert got[-1].value == {"prompt": prompts[-1], "industry": "bank"}
    assert json.loads(got[0].raw.to_json()["raw"]) == got[0].value


def test_messages_are_lists_of_structs(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert written(tmp_path, {"messages": [turns]})[0].value == {"messages": turns}


def test_columns_absent_in_a_row_are_null(tmp_path: Path) -> None:
    got = written(tmp_path, {"prompt": ["a", None], "text": [None, "b"]})
    assert [line.value for line in got] == [
        {"prompt": "a", "text": None},
        {"prompt": None, "text": "b"},
    ]


def test_a_row_over_the_limit_is_rejected_with_its_size(tmp_path: Path) -> None:
    bad, good = written(tmp_path, {"prompt": ["x" * (2 << 20), "b"]})
    assert isinstance(bad.value, RecordError) and bad.value.reason == "read:too-long"
    assert bad.raw.to_json()["raw_bytes"] > 2 << 20 > len(bad.raw.data)
    assert good.value == {"prompt": "b"}


def test_text_that_is_no_utf8_spoils_one_row_only(tmp_path: Path) -> None:
    values = pa.array([b"a", b"\xff\xfe", b"c"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, values.buffers())
    got = written(tmp_path, pa.table({"prompt": text}))
    assert [isinstance(line.value, RecordError) for line in got] == [False, True, False]
    assert isinstance(got[1].value, RecordError) and got[1].value.reason == "read:not-utf8"
    assert base64.b64decode(got[1].raw.to_json()["raw_base64"]) == b"prompt=\xff\xfe"


def test_a_value_without_a_json_form_spoils_one_row_only(tmp_path: Path) -> None:
    far = pa.array([0, 2**61], pa.int64()).cast(pa.timestamp("us"))
    good, bad = written(tmp_path, {"prompt": ["a", "b"], "when": far})
    assert isinstance(good.value, dict)
    assert isinstance(bad.value, RecordError) and bad.value.reason == "read:wrong-value"


def test_values_become_json() -> None:
    assert plain(
        {
            "day": datetime.date(2026, 11, 24),
            "moment": datetime.datetime(2026, 11, 24, 8, 30),
            "span": datetime.timedelta(seconds=90),
            "price": Decimal("9.90"),
            "text": b"caf\xc3\xa9",
            "image": b"\xff\xd8",
            "missing": float("nan"),
            "pairs": [("a", 1)],
            "id": uuid.UUID(int=7),
        }
    ) == {
        "day": "2026-11-24",
        "moment": "2026-11-24T08:30:00",
        "span": 90.0,
        "price": "9.90",
        "text": "café",
        "image": {"base64": "/9g="},
        "missing": None,
        "pairs": [["a", 1]],
        "id": "00000000-0000-0000-0000-000000000007",
    }


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pa.array(["mine"]), pa.array([1]), pa.array(["yours"])]
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_arrays(columns, names=["prompt", "n", "prompt"]), path)
    with pytest.raises(UsageError, match="columns of the same name") as caught:
        open_source(path, LIMIT)
    assert caught.value.details == ("'prompt': 2 columns",)
    pq.write_table(pa.Table.from_arrays(columns, names=["prompt", "n", "Prompt"]), path)
    (line,) = open_source(path, LIMIT).read()
    assert line.value == {"prompt": "mine", "n": 1, "Prompt": "yours"}


def test_a_cut_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StageError, match="may be cut"):
        list(open_source(path, LIMIT).read())


def test_damage_inside_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    rows = [f"prompt {i} {i * 7919}" for i in range(2000)]
    pq.write_table(
        pa.table({"prompt": rows}),
        path,
        row_group_size=15 * ROWS_AT_ONCE,
        compression="zstd",
        use_dictionary=False,
        write_page_checksum=False,
    )
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start + 40 : start + 200] = bytes(160)
    path.write_bytes(data)
    with pytest.raises(StageError, match="damaged after row 960"):
        list(open_source(path, LIMIT).read())
