"""How often each model solves the held-out problems: pass@1, by the check of each record.

Every model answers each problem several times, drawn as the teacher's training answers were. A
problem's rate is the share of its right answers; pass@1 is the mean over problems, and problems
are what the bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from overproof.core.artifact import Json  # noqa: E402
from overproof.core.console import meter, note  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.release.tally import DIFFERENCES, STUDENT, Estimate  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402
from overproof.teacher.answers import Answers  # noqa: E402
from overproof.teacher.checkers.pool import Case, judge  # noqa: E402
from overproof.teacher.journal import Journal  # noqa: E402
from overproof.teacher.local import Teacher  # noqa: E402
from overproof.teacher.prompts import begins_to_think  # noqa: E402
from overproof.teacher.request import Drawing, Request  # noqa: E402
from overproof.teacher.sample import draw_all  # noqa: E402

METRIC = "pass_at_1"
Rates = NDArray[np.float64]  # share of right answers to each problem


@dataclass(frozen=True)
class Solver:
    """A model that answers problems, in its own tokens.

    Attributes:
        prefix: tokens that every conversation starts with.
        spell: the teacher's tokens in its own.
        whole: an answer without the token that ends it; None: it was cut off.
        thinking: the chat template has begun the reasoning.
    """

    model: Any
    prefix: tuple[int, ...]
    stop_ids: tuple[int, ...]
    spell: Callable[[Sequence[int]], tuple[int, ...]]
    whole: Callable[[Sequence[int]], str | None]
    thinking: bool

    @staticmethod
    def of_teacher(teacher: Teacher, answers: Answers) -> Solver:
        """The teacher."""
        ends = teacher.stop_ids
        thinking = _thinking(teacher, answers)
        return Solver(teacher.half, answers.prefix, ends, tuple, teacher.whole, thinking)

    @staticmethod
    def of_student(
        model: Any, vocabulary: Vocabulary, teacher: Teacher, answers: Answers
    ) -> Solver:
        """A student of this vocabulary."""
        ends = vocabulary.ends(teacher.stop_ids)

        def whole(tokens: Sequence[int]) -> str | None:
            if not tokens or tokens[-1] not in ends:
                return None
            return str(vocabulary.tokenizer.decode(list(tokens[:-1]), skip_special_tokens=False))

        thinking = _thinking(teacher, answers)
        return Solver(
            model, vocabulary.spell(answers.student_prefix), ends, vocabulary.spell, whole, thinking
        )


def _thinking(teacher: Teacher, answers: Answers) -> bool:
    return begins_to_think(teacher, [*answers.prefix, *answers.heldout[0].prompt])


def checked(answers: Answers) -> bool:
    """Whether every held-out record says what is right; says so if only some do."""
    known = sum(example.key in answers.checks for example in answers.heldout)
    if 0 < known < len(answers.heldout):
        note(f"pass@1 is left out: {known:,} of {len(answers.heldout):,} records have a check")
    return 0 < known == len(answers.heldout)


def solve(solver: Solver, answers: Answers, recipe: Recipe, folder: Path, name: str) -> Rates:
    """The share of right answers to each held-out problem, in their order.

    Args:
        folder: scratch that outlives a kill; holds the answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    each = recipe.evaluate.attempts
    requests = [
        # Draws of its own: the teacher's answers on the disk are those that others are held to.
        Request.make(one.key, solver.spell(one.prompt), recipe.seed, draw, whose="solver")
        for one in answers.heldout
        for draw in range(each)
    ]
    drawing = Drawing.of(recipe.sample, solver.stop_ids)
    expected = len(requests) * recipe.sample.max_new_tokens
    with (
        closing(Journal(folder / name)) as journal,
        meter(f"solving, {name}", expected, "tokens") as progress,
    ):
        draw_all(solver.model, solver.prefix, requests, drawing, journal, progress)
        said = [journal.done[request.key].tokens for request in requests]
    cases = [
        Case(answers.checks[request.record], solver.whole(tokens), solver.thinking)
        for request, tokens in zip(requests, said, strict=True)
    ]
    with meter(f"checking, {name}", len(cases), "answers") as progress:
        found = judge(cases, device.cores(), progress.advance)
    right = np.array([one.passed for one in found], np.float64)
    rates: Rates = right.reshape(-1, each).mean(1)
    return rates


def judged(base: Teacher, answers: Answers) -> Rates:
    """Whether the one answer to each held-out problem is right: of a teacher that is not here.

    Args:
        base: whose tokens the answers are in.
    """
    thinking = _thinking(base, answers)
    cases = [
        Case(answers.checks[one.key], base.whole(one.answer), thinking) for one in answers.heldout
    ]
    found = judge(cases, device.cores(), lambda _: None)
    return np.array([one.passed for one in found], np.float64)


def add(result: Json, rates: Mapping[str, Rates], recipe: Recipe) -> None:
    """Put pass@1 beside what else was measured, and the student's lead over each other model."""
    count = len(rates[STUDENT])
    config = recipe.evaluate
    draws = np.random.default_rng(recipe.seed).integers(0, count, (config.bootstrap, count))
    one = np.ones(count)
    found = {name: Estimate.of(each, one, draws) for name, each in rates.items()}
    for name, estimate in found.items():
        result.setdefault(name, {})[METRIC] = estimate.interval(config.confidence)
        if name != STUDENT:
            lead = found[STUDENT].less(estimate).interval(config.confidence)
            result[DIFFERENCES].setdefault(name, {})[METRIC] = lead
