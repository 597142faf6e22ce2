"""Licence, origin, other fields, and which finding decides."""

from typing import Any

import pytest

from overproof.data.checks import Candidate, Finding
from overproof.data.dataset import Row
from overproof.data.judge import Accepted, Judge, Rejection, Rule


def accepted(judge: Judge, value: dict[str, Any]) -> Row:
    verdict = judge.judge(value)
    assert isinstance(verdict, Accepted), verdict
    row = Row.from_line(verdict.line)
    assert row.key == verdict.key
    return row


def rejected(judge: Judge, value: dict[str, Any]) -> Rejection:
    verdict = judge.judge(value)
    assert isinstance(verdict, Rejection)
    return verdict


class Says:
    """A check that finds one thing in every record."""

    version = "1"

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, candidate: Candidate) -> list[Finding]:
        return [Finding("thing", "text", 0, 1)]


def test_the_licence_of_the_record_goes_before_the_default() -> None:
    judge = Judge([], "CC0-1.0", "here")
    row = accepted(judge, {"text": "a", "licence": "mit or apache-2.0", "origin": "there"})
    assert (row.licence, row.origin) == ("MIT OR Apache-2.0", "there")
    row = accepted(judge, {"text": "a"})
    assert (row.licence, row.origin, row.creator) == ("CC0-1.0", "here", None)


@pytest.mark.parametrize("name", ["licence", "license"])
def test_both_spellings_are_the_licence(name: str) -> None:
    row = accepted(Judge([]), {"text": "a", name: "CC-BY-4.0"})
    assert row.licence == "CC-BY-4.0" and row.extra == {}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "licence:missing"),
        ({"licence": None}, "licence:missing"),
        ({"licence": ""}, "licence:missing"),
        ({"licence": "free"}, "licence:unknown"),
        ({"licence": "MIT AND"}, "licence:unknown"),
        ({"licence": "MIT", "license": "Apache-2.0"}, "licence:ambiguous"),
        ({"licence": ["MIT"]}, "record:wrong-type"),
        ({"licence": "MIT", "origin": 7}, "record:wrong-type"),
        ({"licence": "MIT", "creator": {"name": "a"}}, "record:wrong-type"),
    ],
)
def test_what_is_wrong_with_the_source_is_a_reason(fields: dict[str, Any], reason: str) -> None:
    assert rejected(Judge([]), {"text": "a", **fields}).reason == reason


def test_an_unknown_licence_names_the_nearest() -> None:
    detail = rejected(Judge([]), {"text": "a", "licence": "Apache 2.0"}).detail
    assert "'Apache-2.0'" in detail


def test_other_fields_are_kept_and_change_no_key() -> None:
    judge = Judge([], "MIT")
    extra = {"industry": "bank", "id": 2**60, "deep": {"n": [-(2**53)]}, "none": None, "n": 5}
    row = accepted(judge, {"text": "a", **extra})
    assert row.extra == {
        "industry": "bank",
        "id": str(2**60),
        "deep": {"n": [str(-(2**53))]},
        "n": 5,
    }
    assert row.key == accepted(judge, {"text": "a"}).key


@pytest.mark.parametrize("value", [float("inf"), "\ud800"])
def test_another_field_without_canonical_form_is_a_reason(value: Any) -> None:
    verdict = rejected(Judge([], "MIT"), {"text": "a", "score": value})
    assert verdict.reason == "record:no-canonical-form"


def test_a_name_without_canonical_form_is_a_reason() -> None:
    verdict = rejected(Judge([], "MIT"), {"text": "a", "\ud800": 1})
    assert verdict.reason == "record:no-canonical-form"


def test_a_finding_of_a_rejecting_check_rejects() -> None:
    judge = Judge([Rule(Says("soft"), "warn"), Rule(Says("hard"), "reject")], "MIT")
    verdict = rejected(judge, {"text": "a"})
    assert verdict.reason == "hard:thing"
    assert [finding["check"] for finding in verdict.findings] == ["hard", "soft"]
    assert {name: dict(count) for name, count in judge.found.items()} == {
        "soft": {"thing": 1},
        "hard": {"thing": 1},
    }


def test_a_finding_of_a_warning_check_stays_with_the_row() -> None:
    row = accepted(Judge([Rule(Says("soft"), "warn")], "MIT"), {"text": "a"})
    assert row.findings == (
        {"check": "soft", "kind": "thing", "part": "text", "start": 0, "end": 1},
    )
