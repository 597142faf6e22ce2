"""Sums of an evaluation, example by example, and what they say: means with their intervals.

Tokens of one answer are not independent, so the unit that is resampled is the example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overproof.core.sections import EvaluateConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Json = dict[str, Any]

TEACHER, STUDENT = "teacher", "student"
BY_POSITION, DIFFERENCES = "agreement_by_position", "differences"


MEASURES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "kl_nats_per_token": ("kl", np.positive),
    "top1_agreement": ("agreement", np.positive),
    "perplexity": ("nll", np.exp),
}  # name: the sums that it comes from, and what is done to their mean a token


@dataclass
class Tally:
    """Sums of one model, one entry an example.

    Attributes:
        kl, agreement, nll: sums over the example's answer tokens, nats and counts.
        tokens: answer tokens of the example.
        hits: agreement at each answer token, for the curve by position.
    """

    kl: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    hits: list[Floats] = field(default_factory=list)

    def add(self, kl: float, nll: float, hits: Floats) -> None:
        """Count one more example."""
        self.kl.append(kl)
        self.agreement.append(float(hits.sum()))
        self.nll.append(nll)
        self.tokens.append(len(hits))
        self.hits.append(hits)

    def extend(self, other: Tally) -> None:
        """Count the examples of another tally behind those of this one."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)


@dataclass(frozen=True)
class Estimate:
    """A number over all examples, and over each resample of them.

    Attributes:
        value: over all examples.
        resamples: over each resample, in an order that all estimates of one evaluation share.
    """

    value: float
    resamples: Floats

    @classmethod
    def of(
        cls, sums: Floats, tokens: Floats, draws: Ints, form: Callable[[Any], Any] = np.positive
    ) -> Estimate:
        """A mean a token.

        Args:
            sums, tokens: of each example.
            draws: (resamples, examples) indices of examples, with repetition.
            form: what is done to the mean, such as `exp` for a perplexity.
        """
        means = sums[draws].sum(1) / tokens[draws].sum(1)
        return cls(float(form(sums.sum() / tokens.sum())), form(means))

    def less(self, other: Estimate) -> Estimate:
        """The difference, paired: both are resampled alike."""
        return Estimate(self.value - other.value, self.resamples - other.resamples)

    def interval(self, confidence: float) -> Json:
        """Value with its percentile bootstrap interval (Efron 1979).

        Args:
            confidence: such as 0.95.
        """
        edges = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = np.quantile(self.resamples, edges)
        return {"value": self.value, "low": float(low), "high": float(high)}


def summary(tallies: Mapping[str, Tally], config: EvaluateConfig, seed: int) -> Json:
    """What was measured of each model, and of the student against each other one.

    The differences are paired, prompt by prompt: the spread that all models share, because some
    prompts are harder than others, is not in them.

    Returns:
        for each model `kl_nats_per_token`, `top1_agreement`, `perplexity` as value, low, high;
        and `agreement_by_position`. Under `differences`, for each model but teacher and student,
        the same three: the student less that model.
    """
    count = len(tallies[TEACHER].tokens)
    draws = np.random.default_rng(seed).integers(0, count, (config.bootstrap, count))
    found = {name: _estimates(tally, draws) for name, tally in tallies.items()}
    return compared(found, config, {name: by_position(one.hits) for name, one in tallies.items()})


def compared(
    found: Mapping[str, Mapping[str, Estimate]],
    config: EvaluateConfig,
    positions: Mapping[str, list[list[float]]] | None = None,
) -> Json:
    """Estimates of each model as values with intervals, and the student's lead over each other.

    Args:
        positions: agreement along the answers of each model; None: it is not known.
    """
    along = positions or {}
    result: Json = {
        name: {key: one.interval(config.confidence) for key, one in estimates.items()}
        | {BY_POSITION: along.get(name, [])}
        for name, estimates in found.items()
    }
    result[DIFFERENCES] = {
        name: {
            key: found[STUDENT][key].less(one).interval(config.confidence)
            for key, one in estimates.items()
        }
        for name, estimates in found.items()
        if STUDENT in found and name not in (TEACHER, STUDENT)
    }
    return result


def _estimates(tally: Tally, draws: Ints) -> dict[str, Estimate]:
    tokens = np.array(tally.tokens, np.float64)
    return {
        key: Estimate.of(np.array(getattr(tally, sums)), tokens, draws, form)
        for key, (sums, form) in MEASURES.items()
    }


def by_position(hits: Sequence[Floats]) -> list[list[float]]:
    """Position in the answer, agreement there, number of answers that reach it."""
    longest = max(map(len, hits), default=0)
    rows = []
    for position in range(longest):
        there = [each[position] for each in hits if len(each) > position]
        rows.append([position, float(np.mean(there)), len(there)])
    return rows
