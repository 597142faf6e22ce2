"""How fast a training went: when each step ended, and what was learned in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from overproof.core.console import Meter
from overproof.core.recipe import Recipe
from overproof.student.examples import TrainSet
from overproof.student.train import batches

WARM = 2  # steps at the beginning that no speed is taken from: memory is still being asked for


@dataclass(frozen=True)
class Learned:
    """What our trainer learns from, step by step.

    Attributes:
        examples: of each step, the numbers of the examples in it.
        tokens: of each step, the positions whose target counts.
    """

    examples: list[list[int]]
    tokens: list[int]

    @classmethod
    def of(cls, data: TrainSet, recipe: Recipe, steps: int) -> Learned:
        """That of the first steps."""
        examples, tokens = [], []
        for batch in islice(batches(data, recipe.train, recipe.seed), steps):
            examples.append(data.numbers(batch.source_RT).tolist())
            tokens.append(int(data.weight_N[batch.source_RT[batch.predicts_RT]].sum()))
        return cls(examples, tokens)


class Pace(Meter):
    """A progress bar that remembers when each step ended."""

    def __init__(self, label: str, steps: int) -> None:
        super().__init__(label, steps, "steps", None)
        self.began = time.perf_counter()
        self.ends: list[float] = []

    def advance(self, units: int, note: str = "") -> None:
        """See `Meter`; a training that begins skips what was done before, which is no step."""
        self.ends += [time.perf_counter()] * units
        super().advance(units, note)

    def run(self, tokens: list[int], model: Any = None) -> Run:
        """What was run, in which each step learned from so many tokens."""
        return Run(tokens, [end - self.began for end in self.ends], model)


@dataclass(frozen=True)
class Run:
    """A training that was run.

    Attributes:
        tokens: learned in each step. ends: when each was over, seconds since the beginning.
        model: what came out; None where nobody asks for it.
    """

    tokens: list[int]
    ends: list[float]
    model: Any = field(default=None, repr=False)

    @property
    def speed(self) -> float:
        """Learned tokens a second, after the steps that warm up."""
        return sum(self.tokens[WARM:]) / (self.ends[-1] - self.ends[WARM - 1])

    @property
    def whole_speed(self) -> float:
        """The same of all steps, with all that comes before the first."""
        return sum(self.tokens) / self.ends[-1]


def turns(rounds: int, names: list[str]) -> Iterator[tuple[int, str]]:
    """Who is measured when: A B A B, so that a noisy neighbour meets all of them."""
    for number in range(rounds):
        for name in names:
            yield number, name
