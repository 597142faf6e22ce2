"""What is kept of the teacher's distributions: three kinds of cache behind one type."""

from __future__ import annotations

from overproof.core import methods
from overproof.teacher.kept.base import Exact, Kept, Signals, Spread, exact
from overproof.teacher.kept.sampled import Sampled
from overproof.teacher.kept.states import States
from overproof.teacher.kept.top_k import TopK

__all__ = [
    "Exact",
    "Kept",
    "Sampled",
    "Signals",
    "Spread",
    "States",
    "TopK",
    "exact",
    "kept_of",
    "spread_temperature",
]


def kept_of(config: methods.Cached) -> Kept:
    """What a recipe says."""
    prompts, temperature = config.prompts, config.temperature
    match config:
        case methods.Sampled(draws=draws):
            return Sampled(draws, prompts=prompts, temperature=temperature)
        case methods.TopK(top_k=top, tail_draws=drawn):
            return TopK(top, drawn, prompts=prompts, temperature=temperature)
        case methods.Exact():
            return States(prompts=prompts, temperature=temperature)


def spread_temperature(config: methods.Signals) -> float:
    """Of the distributions that a cache's spreads are; hidden states give them at 1."""
    return 1.0 if isinstance(config, methods.Exact) else config.temperature
