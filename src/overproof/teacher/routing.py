"""Several teachers: which of them answers a record.

A teacher with `records` answers those that it claims, alone or with others that claim them too; all
other records go to the teachers without. Among those that may answer, each answer's teacher is
drawn by weight. So the loss over a set is, in the mean, the weighted sum of the divergences from
each teacher on its own text: a mixture of teachers at the price of one.
"""

from __future__ import annotations

import itertools
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from overproof.core.digest import sha256_bytes
from overproof.core.errors import UsageError
from overproof.core.sections import TeacherConfig
from overproof.teacher.example import Example
from overproof.teacher.local import Teacher

Rule = Mapping[str, Sequence[str]]
DIGITS = 15  # hex digits of a draw: 60 bits, more than a float has


class Load(Protocol):
    """Loads the teachers."""

    def __call__(self, which: int = 0) -> Teacher:
        """The so manieth teacher, the first by default."""


class Router:
    """Which teacher answers, by a record's fields, weights, and the recipe's seed."""

    def __init__(self, config: TeacherConfig, seed: int) -> None:
        self.seed = seed
        self.rules: list[Rule | None] = [None, *(other.records for other in config.others)]
        self.weights = [config.weight, *(other.weight for other in config.others)]

    def teacher(self, answer: str, fields: Mapping[str, Any]) -> int:
        """Number of the teacher that gives an answer; the first is 0.

        Args:
            answer: key of the request.
            fields: of the record, beside its prompt.
        """
        claims = [
            which
            for which, rule in enumerate(self.rules)
            if rule is not None and claimed(fields, rule)
        ]
        free = claims or [which for which, rule in enumerate(self.rules) if rule is None]
        if len(free) == 1:
            return free[0]
        drawn = int(sha256_bytes(f"{self.seed}:teacher:{answer}".encode())[:DIGITS], 16)
        ends = list(itertools.accumulate(self.weights[which] for which in free))
        # The last end is left out: rounding shall lead to no teacher behind it.
        return free[bisect(ends[:-1], drawn / 16**DIGITS * ends[-1])]


def claimed(fields: Mapping[str, Any], rule: Rule) -> bool:
    """Whether each field that the rule names has one of its values; of a list, one of it does."""
    return all(set(_values(fields.get(name))) & set(wanted) for name, wanted in rule.items())


def _values(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def demand_alike(first: Teacher, other: Teacher) -> None:
    """Refuse teachers whose answers could not be learned together.

    Raises:
        UsageError: another tokenizer, chat template, end or width than the first teacher's; the
            message names which.
    """
    one, two = (
        {
            "tokenizer": teacher.tokenizer_state,
            "chat template": teacher.chat_template,
            "tokens that end an answer": teacher.stop_ids,
            "rows of the embedding": teacher.model.config.vocab_size,
        }
        for teacher in (first, other)
    )
    apart = [name for name, value in one.items() if two[name] != value]
    if apart:
        raise UsageError(
            f"teacher.others: {other.name} does not speak like {first.name}",
            details=[f"differs in: {', '.join(apart)}"],
            hint="name models of one family, such as two fine-tunings of one base",
        )


def role(kind: str, which: int) -> str:
    """What a stage calls the so manieth of its inputs of a kind."""
    return f"{kind}-{which}" if which else kind


def by_teacher(examples: Sequence[Example]) -> Iterator[tuple[int, Sequence[Example]]]:
    """Runs of examples of one teacher, which stand together in every file."""
    start = 0
    for which, run in itertools.groupby(example.teacher for example in examples):
        stop = start + sum(1 for _ in run)
        yield which, examples[start:stop]
        start = stop
