"""Every row of the shipped table: the names that it covers get the verdict that it wants."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import yaml

from overproof.core.errors import UsageError
from overproof.policy.lookup import lookup
from overproof.policy.rows import load_rows
from overproof.policy.table import markdown, updated
from overproof.policy.verdict import Verdict

TODAY = date(2026, 11, 24)
DOCS = Path(__file__).parents[3] / "docs" / "terms.md"

CASES = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("row", "model", "channel", "day", "verdict"),
    [
        (case["row"], name, case["channel"], case.get("day", TODAY), case["verdict"])
        for case in CASES
        for name in case["names"]
    ],
)
def test_every_row_is_reached_and_says_what_it_should(row, model, channel, day, verdict) -> None:
    found = lookup(model, channel, day)
    assert row in [entry.id for entry in found.rows]
    assert found.verdict == verdict


def test_no_row_is_without_a_case() -> None:
    assert {row.id for row in load_rows()} == {case["row"] for case in CASES}


@pytest.mark.parametrize("row", load_rows(), ids=lambda row: row.id)
def test_every_row_can_be_shown_to_a_lawyer(row) -> None:
    assert row.document and row.clause and row.source and row.retrieved
    assert "**" not in row.quote and "~" not in row.quote
    assert row.effective <= TODAY
    assert row.quote or row.verdict is Verdict.ALLOW
    if row.channel == "weights":
        assert row.licence or "not read" in row.document


def test_the_table_in_the_docs_is_the_data() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert updated(text, load_rows()) == text, "run python -m overproof.policy.table docs/terms.md"


def test_table_shows_every_row_and_its_digest() -> None:
    text = markdown(load_rows())
    assert len(text.splitlines()) == 2 + len(load_rows())
    assert all(row.row_digest[:12] in text for row in load_rows())


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(UsageError, match="no place for the table"):
        updated("# Terms\n", load_rows())
