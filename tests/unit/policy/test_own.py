"""The gate on a teacher that the run made itself: by what its stage read, not by its name."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from overproof.core.artifact import Artifact, Resource, build
from overproof.core.errors import PolicyError
from overproof.policy import own
from overproof.policy.obligations import carry_out
from overproof.policy.verdict import Verdict

DAY = dt.date(2026, 11, 28)


def stage(store: Path, kind: str, **inputs: Artifact | Resource) -> Artifact:
    return build(store, kind, inputs=inputs, config={}, make=lambda _: {})


def test_a_model_of_certified_records_alone_is_allowed(tmp_path: Path) -> None:
    teacher = stage(tmp_path, "teacher", corpus=stage(tmp_path, "dataset"))
    found = own.decide("Mine", teacher, "weights", DAY).require()
    assert found.verdict is Verdict.ALLOW
    assert not found.obligations
    assert not found.warnings
    (predicate,) = found.predicates()
    assert predicate["teacher"] == {"name": "Mine", "sha256": teacher.sha256}
    assert predicate["row"]["document"].startswith("no terms")
    assert carry_out(found, "Mine-Flash").name == "Mine-Flash"


def test_one_that_read_something_else_is_refused(tmp_path: Path) -> None:
    data = stage(tmp_path, "dataset")
    weights = Resource("teacher", "Llama-2-7b-chat", "file:Llama-2-7b-chat", "1" * 64)
    teacher = stage(tmp_path, "teacher", corpus=data, start=weights)
    with pytest.raises(PolicyError, match="no model of this run's own") as caught:
        own.decide("Mine", teacher, "weights", DAY)
    assert "start: teacher Llama-2-7b-chat" in caught.value.render()
    with pytest.raises(PolicyError, match="no model of this run's own"):
        own.decide("Mine", stage(tmp_path, "student", data=data), "weights", DAY)
