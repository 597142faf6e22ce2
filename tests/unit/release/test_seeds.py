"""Intervals over several trainings."""

from __future__ import annotations

import math

import pytest

from overproof.release.seeds import interval, over_seeds, student_t, within


@pytest.mark.parametrize(
    ("freedom", "confidence", "t"),
    # Abramowitz and Stegun 1964, table 26.10.
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.99, 4.604), (7, 0.9, 1.895),
     (9, 0.95, 2.262), (30, 0.95, 2.042), (120, 0.99, 2.617)],
)  # fmt: skip
def test_quantiles_are_those_of_the_tables(freedom: int, confidence: float, t: float) -> None:
    assert student_t(freedom, confidence) == pytest.approx(t, abs=6e-4)
    assert within(t, freedom) == pytest.approx(confidence, abs=1e-4)


def test_an_interval_of_three() -> None:
    found = interval([1.0, 2.0, 6.0], 0.95)
    assert found["value"] == 3.0
    half = 4.302653 * math.sqrt(7.0) / math.sqrt(3)
    assert found["high"] - 3.0 == pytest.approx(half, rel=1e-6)
    assert 3.0 - found["low"] == pytest.approx(half, rel=1e-6)
    assert interval([0.3, 0.3], 0.95) == {"value": 0.3, "low": 0.3, "high": 0.3}
    endless = interval([math.inf, 2.0], 0.95)
    assert endless["value"] == math.inf
    assert math.isnan(endless["low"])


def number(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 1, "high": value + 1}


def result(student: float, control: float, **more: object) -> dict[str, object]:
    return {
        "teacher": {"kl": number(0.0), "agreement_by_position": []},
        "student": {"kl": number(student), "agreement_by_position": []},
        "control": {"kl": number(control), "agreement_by_position": []},
        "differences": {"control": {"kl": number(student - control)}},
        "products": "fp32",
        **more,
    }


def test_differences_are_paired_seed_by_seed() -> None:
    """The two arms move together by far more than they differ."""
    first = result(1.0, 2.0, untrained={"kl": number(9.0)})
    first["differences"] |= {"untrained": {"kl": number(-8.0)}}  # type: ignore[operator]
    found = over_seeds([first, result(3.0, 4.1), result(8.0, 8.9)], 0.95)
    assert found is not None
    assert found["count"] == 3
    assert set(found["arms"]) == {"student", "control"}  # the others were not trained
    assert found["arms"]["student"]["kl"]["value"] == 4.0
    assert found["arms"]["student"]["kl"]["low"] < 0
    lead = found["differences"]["control"]["kl"]
    assert lead["value"] == pytest.approx(-1.0)
    assert -1.3 < lead["low"] < -1.2
    start = found["differences"]["untrained"]["kl"]  # measured once, with the first
    assert start["value"] == pytest.approx(-5.0)


def test_one_training_has_no_interval() -> None:
    assert over_seeds([result(1.0, 2.0)], 0.95) is None
