"""What several trainings say together: means over seeds with their intervals, by Student's t.

What is random here is the order of the training data, and what else follows from the seed of a
training; prompts, answers, signals and the initial student are the same in each. So the interval
is about trainings, and that of the bootstrap (`tally.py`) is about prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from overproof.release.tally import DIFFERENCES, STUDENT, TEACHER

Json = dict[str, Any]
HALVINGS = 200  # of the bracket of a quantile: more than a double has digits
MOST_T = 1e6  # no confidence below 1 - 1e-6 needs a larger one


def over_seeds(results: Sequence[Json], confidence: float) -> Json | None:
    """Means over several evaluations; None: there is one only.

    Args:
        results: of each seed what was measured of each arm; what was not trained anew stands in
            the first alone.
        confidence: of the intervals, such as 0.95.

    Returns:
        `count`; under `arms` the mean of each measure of each arm that was trained; under
        `differences` that of the student less each other model, paired seed by seed.
    """
    if len(results) < 2:
        return None
    first = results[0]
    others = {name: measures(rows) for name, rows in first[DIFFERENCES].items()}
    trained = {STUDENT: measures(first[STUDENT])}
    trained |= {
        name: found for name, found in others.items() if name in results[1] and name != TEACHER
    }

    def values(name: str, metric: str) -> list[float]:
        found = [one.get(name, {}).get(metric, first[name][metric]) for one in results]
        return [float(one["value"]) for one in found]

    def lead(name: str, metric: str) -> list[float]:
        pairs = zip(values(STUDENT, metric), values(name, metric), strict=True)
        return [mine - theirs for mine, theirs in pairs]

    return {
        "count": len(results),
        "arms": {
            name: {metric: interval(values(name, metric), confidence) for metric in found}
            for name, found in trained.items()
        },
        DIFFERENCES: {
            name: {metric: interval(lead(name, metric), confidence) for metric in found}
            for name, found in others.items()
        },
    }


def measures(rows: Json) -> list[str]:
    """Names of the numbers with an interval."""
    return [name for name, found in rows.items() if isinstance(found, dict)]


def interval(values: Sequence[float], confidence: float) -> Json:
    """Mean of a few independent numbers with its interval (Student 1908)."""
    mean = fmean(values)
    if not math.isfinite(mean):  # as a perplexity may be
        return {"value": mean, "low": math.nan, "high": math.nan}
    half = student_t(len(values) - 1, confidence) * stdev(values) / math.sqrt(len(values))
    return {"value": mean, "low": mean - half, "high": mean + half}


def student_t(freedom: int, confidence: float) -> float:
    """t that a value of Student's distribution stays below in size with this probability.

    Args:
        freedom: degrees of it, 1 at least.
        confidence: such as 0.95.
    """
    low, high = 0.0, MOST_T
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < confidence else (low, middle)
    return high


def within(t: float, freedom: int) -> float:
    """P(|T| < t) for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for place in range(odd, freedom - 1, 2):
        total += term
        term *= square * (place + 1) / (place + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
