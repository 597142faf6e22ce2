"""Loading rows: what is refused, and which of several versions counts."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import yaml

from overproof.core.errors import UsageError
from overproof.policy.lookup import lookup
from overproof.policy.rows import Row, in_force, load_rows
from overproof.policy.verdict import Verdict

BASE = {
    "id": "acme-1",
    "family": "Acme",
    "match": ["acme-*"],
    "artefact": "Acme weights",
    "channel": "weights",
    "document": "Acme License",
    "effective": date(2025, 1, 1),
    "retrieved": "2026-11",
    "clause": "1",
    "quote": "do not learn from this",
    "source": "acme.example",
    "verdict": "deny",
    "read_at_source": True,
}


def duty(kind: str, value: str) -> dict:
    return {"id": "a", "kind": kind, "value": value}


def write(folder: Path, *rows: dict, name: str = "acme.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump({"vendor": "Acme", "rows": list(rows)}))
    return folder


def row(**change) -> Row:
    return Row.model_validate({"vendor": "Acme", **BASE, **change})


def test_a_good_row_loads(tmp_path) -> None:
    (loaded,) = load_rows(write(tmp_path, BASE))
    assert loaded.verdict is Verdict.DENY
    assert loaded.vendor == "Acme"


@pytest.mark.parametrize(
    "field", ["effective", "retrieved", "source", "document", "clause", "verdict", "match"]
)
def test_a_row_without_a_needed_field_is_refused_by_name(tmp_path, field) -> None:
    bad = {key: value for key, value in BASE.items() if key != field}
    with pytest.raises(UsageError) as error:
        load_rows(write(tmp_path, bad))
    assert "'acme-1'" in error.value.what
    assert any(line.startswith(field) for line in error.value.details)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source": "  "}, "source"),
        ({"effective": "soon"}, "effective"),
        ({"retrieved": "last week"}, "retrieved"),
        ({"retrieved": "2026-13"}, "retrieved"),
        ({"match": ["*"]}, "match"),
        ({"match": ["Acme-*"]}, "match"),
        ({"match": []}, "match"),
        ({"channel": "carrier pigeon"}, "channel"),
        ({"quote": ""}, "must quote its clause"),
        ({"verdict": "allow_with"}, "at least one obligation"),
        ({"licence": "Apache 2.0"}, "not a known licence"),
        ({"colour": "red"}, "colour"),
        ({"verdict": "allow", "obligations": [duty("name_prefix", "A")]}, "write allow_with"),
        ({"obligations": [duty("user_limit", "many")]}, "number of users"),
        ({"obligations": [duty("license_copy", "nonsense")]}, "not a known licence"),
        ({"obligations": [duty("dance", "x")]}, "obligations.0.kind"),
        ({"obligations": [duty("notice", v) for v in "xy"]}, "two obligations"),
    ],
)
def test_a_wrong_row_is_refused_with_the_reason(tmp_path, change, reason) -> None:
    with pytest.raises(UsageError) as error:
        load_rows(write(tmp_path, {**BASE, **change}))
    assert reason in error.value.render()


@pytest.mark.parametrize(
    "text", ["", "vendor: Acme\n", "- a\n", "vendor: Acme\nrows: [1]\n", "a: [", "\x00"]
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"bad\.yaml"):
        load_rows(tmp_path)


def test_two_rows_of_one_id_are_refused(tmp_path) -> None:
    write(tmp_path, BASE, name="a.yaml")
    write(tmp_path, BASE, name="b.yaml")
    with pytest.raises(UsageError, match="acme-1"):
        load_rows(tmp_path)


def test_the_newest_effective_row_wins_and_older_days_replay_the_older() -> None:
    rows = (
        row(),
        row(id="acme-2", effective=date(2026, 1, 1), verdict="allow"),
        row(id="acme-3", effective=date(2027, 1, 1), verdict="needs_approval"),
    )
    verdicts = {
        day: lookup("acme-7b", "weights", day, rows).verdict
        for day in (date(2024, 12, 31), date(2025, 1, 1), date(2025, 12, 31), date(2026, 1, 1))
    }
    assert list(verdicts.values()) == ["unknown", "deny", "deny", "allow"]
    assert lookup("acme-7b", "weights", date(2027, 1, 1), rows).verdict == "needs_approval"


def test_shipped_rows_replay_too() -> None:
    old = lookup("mistral-large-latest", "api", date(2026, 8, 4))
    new = lookup("mistral-large-latest", "api", date(2026, 8, 5))
    assert [entry.row.effective for entry in (old, new)] == [date(2026, 5, 28), date(2026, 8, 5)]


def test_a_newer_version_that_drops_a_name_ends_the_older_row() -> None:
    rows = (row(), row(id="acme-2", effective=date(2026, 1, 1), match=["acme-pro-*"]))
    assert lookup("acme-7b", "weights", date(2025, 6, 1), rows).verdict == "deny"
    assert lookup("acme-7b", "weights", date(2026, 6, 1), rows).verdict == "unknown"


def test_a_document_of_a_new_title_supersedes_by_id() -> None:
    new = row(
        id="acme-2",
        document="Acme Agreement",
        effective=date(2026, 1, 1),
        verdict="allow",
        supersedes=["acme-1"],
    )
    rows = (row(), new)
    assert in_force(rows, date(2025, 6, 1)) == [rows[0]]
    assert in_force(rows, date(2026, 6, 1)) == [new]


def test_of_one_date_the_strictest_wins() -> None:
    rows = (row(verdict="allow"), row(id="acme-2", verdict="needs_approval"))
    found = lookup("acme-7b", "weights", date(2026, 1, 1), rows)
    assert found.verdict == "needs_approval"
    assert found.row.id == "acme-2"
    assert len(found.rows) == 2


def test_a_digest_moves_with_any_field_and_not_with_defaults() -> None:
    assert row().row_digest == row(note="", supersedes=[]).row_digest
    assert (
        len(
            {
                row().row_digest,
                row(quote="other").row_digest,
                row(effective="2025-01-02").row_digest,
            }
        )
        == 3
    )
