"""Certification of whole files: what is kept, what is rejected, what is told."""

import base64
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overproof.core import artifact
from overproof.core.artifact import load
from overproof.core.disk import exclusive
from overproof.core.errors import PolicyError, StageError, TrustError, UsageError
from overproof.core.sections import DataConfig
from overproof.data import dataset
from overproof.data.certify import Certified, Config, certify, render, run
from overproof.data.keys import open_keys
from overproof.data.records import parse, record_key
from overproof.trust.merkle import SortedTree

GOOD = [
    {"prompt": "Where is my parcel?", "licence": "CC0-1.0", "origin": "shop", "industry": "retail"},
    {"prompt": "Block my card.", "licence": "CC0-1.0", "origin": "bank", "creator": "anna"},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
]


def written(folder: Path, rows: list[Any], name: str = "data.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def certified(folder: Path, rows: list[Any], **more: Any) -> Certified:
    more = {"licence": "MIT", "out": folder / "set", **more}
    return run(Config(file=written(folder, rows), **more))


def rejected(done: Certified) -> list[dict[str, Any]]:
    lines = done.artifact.file(dataset.REJECTED).read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def test_the_files_of_a_data_set(tmp_path: Path) -> None:
    done = certified(tmp_path, GOOD)
    rows = list(dataset.rows(done.artifact))
    keys = [bytes.fromhex(row.key) for row in rows]
    assert keys == sorted(record_key(row.record) for row in rows)
    assert sorted(keys) == sorted(record_key(parse(row)) for row in GOOD)
    with open_keys(done.artifact.file(dataset.KEYS)) as leaves:
        assert list(leaves) == keys
        head = SortedTree(leaves).head
    assert done.certificate["tree"] == {"size": 3, "head": head}
    assert done.artifact.facts["tree"] == done.certificate["tree"]
    by_prompt = {row.record.parts()[0][1]: row for row in rows}
    parcel = by_prompt["Where is my parcel?"]
    assert (parcel.licence, parcel.origin) == ("CC0-1.0", "shop")
    assert parcel.extra == {"industry": "retail"}
    assert by_prompt["Block my card."].creator == "anna"
    assert by_prompt["Hi"].licence == "MIT"


def test_the_certificate_counts_everything(tmp_path: Path) -> None:
    rows = [*GOOD, GOOD[0], {"prompt": "write to anna@web.de"}, {"prompt": 7}]
    path = tmp_path / "data.jsonl"
    cert = certified(tmp_path, rows).certificate
    assert (cert["format"], cert["matching"]) == (
        "overproof-certificate/1",
        "exact or normalised match only",
    )
    assert (cert["records"], cert["accepted"], cert["rejected"]) == (6, 3, 3)
    assert cert["reasons"] == {
        "duplicates:exact": 1,
        "personal:email": 1,
        "record:wrong-type": 1,
    }
    assert cert["licences"] == {"CC0-1.0": 2, "MIT": 1}
    assert cert["origins"] == {"(not stated)": 1, "bank": 1, "shop": 1}
    assert cert["creators"] == {"(not stated)": 2, "anna": 1}
    assert {row["name"]: row["findings"] for row in cert["checks"]} == {
        "length": {},
        "encoding": {},
        "mojibake": {},
        "personal": {"email": 1},
        "duplicates": {"exact": 1},
    }
    assert cert["source"] == {
        "name": "data.jsonl",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
    }


def test_no_personal_data_gets_into_certificate_or_manifest(tmp_path: Path) -> None:
    done = certified(tmp_path, [*GOOD, {"prompt": "write to anna@web.de"}])
    for name in (dataset.CERTIFICATE, artifact.MANIFEST):
        assert "anna@" not in (done.artifact.path / name).read_text()


def test_nothing_is_lost(tmp_path: Path) -> None:
    """Every bad input of the specification, in one file: each is there with its reason."""
    long = b'{"prompt": "' + b"x" * (2 << 20) + b'"}'
    bad = [
        (b'{"prompt": "\xff"}', "read:not-utf8"),
        (long, "read:too-long"),
        (b'{"prompt": 5}', "record:wrong-type"),
        (b'{"messages": {"a": [[]]}}', "record:wrong-type"),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
            "record:role-repeated",
        ),
        (b'{"prompt": "a", "prompt": "b"}', "read:duplicate-key"),
        (b'{"prompt": "a", "score": NaN}', "read:not-finite"),
        (b"[[[[", "read:not-json"),
        (b'{"prompt": "  "}', "length:empty"),
        (b'{"prompt": "lost \\ufffd"}', "encoding:replacement-character"),
        (b'{"prompt": "' + b"y" * 70_000 + b'"}', "length:too-long"),
        (b'{"prompt": "x", "licence": "free as in beer"}', "licence:unknown"),
        (json.dumps(GOOD[1]).encode(), "duplicates:exact"),
    ]
    path = written(tmp_path, [*GOOD, *(line for line, _ in bad)])
    path.write_bytes(path.read_bytes() + b'{"prompt": "cut')
    done = run(Config(file=path, licence="MIT", out=tmp_path / "set"))
    got = {row["line"]: row for row in rejected(done)}
    wanted = {4 + i: row for i, row in enumerate([*bad, (b'{"prompt": "cut', "read:truncated")])}
    assert done.certificate["accepted"] == len(GOOD)
    duplicate = min(line for line, row in got.items() if row["reason"] == "duplicates:exact")
    assert duplicate in (2, 16) and len(got) == len(wanted)
    for number, (line, reason) in wanted.items():
        row = got[duplicate if reason == "duplicates:exact" else number]
        assert row["reason"] == reason
        raw = row["raw"].encode() if "raw" in row else base64.b64decode(row["raw_base64"])
        assert raw == (line[: len(raw)] if line is long else line)
    assert got[5]["raw_bytes"] == len(long)
    assert got[5]["raw_sha256"] == hashlib.sha256(long).hexdigest()
    assert "messages[0] and messages[1]" in got[8]["detail"]


def test_a_finding_is_kept_with_the_rejected_record(tmp_path: Path) -> None:
    done = certified(tmp_path, [*GOOD, {"prompt": "write to anna@web.de"}])
    (row,) = rejected(done)
    assert row["findings"] == [
        {
            "check": "personal",
            "kind": "email",
            "part": "messages[0].content",
            "start": 9,
            "end": 20,
        }
    ]


def test_a_warning_keeps_the_record_and_tells(tmp_path: Path) -> None:
    done = certified(tmp_path, [{"prompt": "write to anna@web.de"}], personal_data="warn")
    (row,) = dataset.rows(done.artifact)
    assert [finding["kind"] for finding in row.findings] == ["email"]
    assert "1 personal:email" in render(done)


def test_parquet_and_jsonl_give_the_same_set(tmp_path: Path) -> None:
    prompts = [f"request number {i}" for i in range(200)]
    table = pa.table({"prompt": prompts, "licence": ["CC0-1.0"] * 200, "industry": ["bank"] * 200})
    pq.write_table(table, tmp_path / "data.parquet")
    one = run(Config(file=tmp_path / "data.parquet", out=tmp_path / "a"))
    rows = [{"prompt": p, "licence": "CC0-1.0", "industry": "bank"} for p in prompts]
    two = certified(tmp_path, rows, out=tmp_path / "b", licence=None)
    first, second = (done.artifact.file(dataset.RECORDS).read_bytes() for done in (one, two))
    assert first == second
    assert one.certificate["tree"] == two.certificate["tree"]


def test_records_of_another_set_are_refused(tmp_path: Path) -> None:
    held = certified(tmp_path, [GOOD[0]], out=tmp_path / "held").artifact
    again = {"prompt": " Where  is my\nparcel? "}
    done = certified(tmp_path, [again, *GOOD[1:]], exclude=held.path)
    assert done.certificate["reasons"] == {"overlap:excluded": 1}
    roles = {row["role"]: row["sha256"] for row in done.artifact.manifest["inputs"]}
    assert roles["exclude"] == held.sha256
    assert done.artifact.manifest["inputs"][-1]["uri"] == "file:data.jsonl"


def test_a_changed_set_to_exclude_is_not_trusted(tmp_path: Path) -> None:
    held = certified(tmp_path, [GOOD[0]], out=tmp_path / "held").artifact
    held.file(dataset.KEYS).write_bytes(bytes(32))
    with pytest.raises(TrustError, match="differ from the manifest"):
        certified(tmp_path, GOOD, exclude=held.path)


def test_the_recipe_section_is_configuration_enough(tmp_path: Path) -> None:
    config = DataConfig(train="data.jsonl", heldout="none.jsonl", licence="cc0-1.0", origin="here")
    made = certify(written(tmp_path, [{"prompt": "a"}]), config, store=tmp_path, name="train")
    (row,) = dataset.rows(made)
    assert (row.licence, row.origin, made.path) == ("CC0-1.0", "here", tmp_path / "train")


def test_equal_inputs_give_equal_bytes_and_are_kept(tmp_path: Path) -> None:
    one = certified(tmp_path, GOOD, out=tmp_path / "a").artifact
    two = certified(tmp_path, GOOD, out=tmp_path / "b").artifact
    assert one.sha256 == two.sha256
    again = certified(tmp_path, GOOD, out=tmp_path / "a").artifact
    assert again.manifest["times"] == one.manifest["times"]


def test_another_demand_makes_another_set(tmp_path: Path) -> None:
    one = certified(tmp_path, GOOD).artifact
    two = certified(tmp_path, GOOD, max_record_bytes=1000).artifact
    assert one.sha256 != two.sha256
    assert load(tmp_path / "set").sha256 == two.sha256


def test_a_killed_run_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    whole = certified(tmp_path, GOOD, out=tmp_path / "whole").artifact
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("overproof.data.assemble.size_and_head", killed)
        certified(tmp_path, GOOD)
    assert not (tmp_path / "set").exists()
    done = certified(tmp_path, GOOD).artifact
    assert done.sha256 == whole.sha256
    assert not list(tmp_path.glob(".set.*"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n  \n", "only blank lines"),
        (b'{"prompt": "cut', "none of 1 lines"),
        (b"prompt\nhello\n", "line 2: expecting value"),
        (b'{"question": "a"}\n', "line 1: has none of the fields prompt, messages, text"),
    ],
)
def test_a_file_without_a_readable_record_is_an_error(
    tmp_path: Path, data: bytes, says: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=says):
        run(Config(file=path, licence="MIT", out=tmp_path / "set"))
    assert {item.name for item in tmp_path.iterdir()} <= {"data.jsonl", ".lock"}


def test_nothing_accepted_is_refused_and_kept(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        certified(tmp_path, [{"prompt": "a"}, {"prompt": "b"}], licence=None)
    assert "none of 2 records" in str(caught.value) and "licence:missing: 2" in str(caught.value)
    assert "--licence" in str(caught.value.hint)
    assert len((tmp_path / "set" / dataset.REJECTED).read_bytes().splitlines()) == 2


def test_an_unknown_default_licence_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a known licence"):
        certified(tmp_path, GOOD, licence="Free Licence")


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds something else"):
        certified(tmp_path, GOOD, out=tmp_path / "mine")
    with pytest.raises(UsageError, match="is a file"):
        certified(tmp_path, GOOD, out=tmp_path / "mine" / "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_another_artifact_is_not_replaced(tmp_path: Path) -> None:
    artifact.build(tmp_path, "student", inputs={}, config={}, make=lambda _: {})
    with pytest.raises(UsageError, match="holds something else"):
        certified(tmp_path, GOOD, out=tmp_path / "student")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(StageError, match="another run"):
        certified(tmp_path, GOOD)


def test_a_source_that_changes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overproof.data.assemble.sha256_file", lambda path: "0" * 64)
    with pytest.raises(StageError, match="changed while it was read"):
        certified(tmp_path, GOOD)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("overproof.data.spool.Spool.add", full)
    with pytest.raises(StageError, match="the disk is full"):
        certified(tmp_path, GOOD)


def test_many_origins_are_summed_up(tmp_path: Path) -> None:
    rows = [{"prompt": f"request {i}", "origin": f"https://a.org/{i:03}"} for i in range(150)]
    origins = certified(tmp_path, rows).certificate["origins"]
    assert origins["(others)"] == 50 and len(origins) == 101


def test_the_summary_says_where_the_rejected_records_are(tmp_path: Path) -> None:
    rows = [*GOOD, GOOD[0], *({"prompt": f"write to anna{i}@web.de"} for i in range(2))]
    done = certified(tmp_path, rows)
    lines = render(done).splitlines()
    assert lines[0] == f"3 of 6 records accepted: {tmp_path / 'set'}"
    assert lines[1] == f"3 rejected: {tmp_path / 'set' / 'rejected.jsonl'}"
    assert [line.split() for line in lines[2:4]] == [
        ["personal:email", "2"],
        ["duplicates:exact", "1"],
    ]
    assert "exact or normalised match only" in lines[-1]
    assert done.to_json()["sha256"] == done.artifact.sha256 and done.exit_code == 0


def test_the_default_folder_is_named_after_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(Config(file=written(tmp_path, GOOD), licence="MIT"))
    assert done.artifact.path == tmp_path / "out/certified/data"


def test_ten_thousand_short_records_certify_in_seconds(tmp_path: Path) -> None:
    """Ten seconds on one core are demanded; one is measured, so a busy machine has room."""
    rows = [
        {"prompt": f"My order {i * 7919} from {i % 28 + 1} March 2024 at 14:3{i % 10} is late."}
        for i in range(10_000)
    ]
    done = certified(tmp_path, rows)
    assert done.certificate["accepted"] == 10_000
    assert done.artifact.manifest["times"]["seconds"] < 10
    assert Counter(done.certificate["reasons"]) == Counter()
