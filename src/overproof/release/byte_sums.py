"""Sums of a text that is known and of places in it, for measures that are no KL a token.

Where the teacher's tokens are not the student's, or its distributions are not all known, cross-
entropy is counted in nats a byte of its answers, and KL and agreement at some places only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from overproof.core.sections import EvaluateConfig
from overproof.release.tally import Estimate

CROSS = "nats_per_byte"


@dataclass
class Sums:
    """Sums of one model, one entry an answer.

    Attributes:
        nll, kl: nats. bytes: of the text. places: where the teacher's distribution is compared.
        hits: agreement at each of these.
    """

    nll: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    hits: list[NDArray[np.float64]] = field(default_factory=list)

    def extend(self, other: Sums) -> None:
        """Count the answers of another behind those of this one."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)


def estimates(
    whole: Mapping[str, Sums], config: EvaluateConfig, seed: int, kl: str, agreement: str
) -> dict[str, dict[str, Estimate]]:
    """The means of each model, over all answers and over each resample of them.

    Args:
        kl, agreement: what these are called.
    """
    count = len(next(iter(whole.values())).nll)
    draws = np.random.default_rng(seed).integers(0, count, (config.bootstrap, count))

    def mean(values: Sequence[float], counts: Sequence[int]) -> Estimate:
        return Estimate.of(np.array(values, np.float64), np.array(counts, np.float64), draws)

    found = dict[str, dict[str, Estimate]]()
    for name, sums in whole.items():
        found[name] = {CROSS: mean(sums.nll, sums.bytes)}
        if sums.places and all(sums.places):  # without a place a resample could have no mean
            found[name][kl] = mean(sums.kl, sums.places)
            found[name][agreement] = mean([float(hits.sum()) for hits in sums.hits], sums.places)
    return found
