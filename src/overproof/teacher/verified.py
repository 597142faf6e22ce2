"""Rejection sampling: only answers that pass the check of their record are learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from overproof.core import device
from overproof.core.console import meter
from overproof.core.errors import StageError
from overproof.teacher.checkers.pool import Case, judge
from overproof.teacher.local import Teacher
from overproof.teacher.prompts import Asked
from overproof.teacher.request import Said

SHOWN = 5  # reasons named when no answer is right


def right(said: Sequence[Said], asked: Asked, teacher: Teacher, split: str) -> list[Said]:
    """The answers that pass, in their order. One that was cut off is wrong: it has no end to learn.

    Args:
        asked: its checks have one for each record that was asked.
        split: a word for the progress bar.

    Raises:
        StageError: none passes.
    """
    cases = [
        Case(asked.checks[one.request.record], teacher.whole(one.tokens), asked.thinking)
        for one in said
    ]
    with meter(f"checking {split}", len(cases), "answers") as progress:
        found = judge(cases, device.cores(), progress.advance)
    good = [one for one, finding in zip(said, found, strict=True) if finding.passed]
    if not good:
        reasons = Counter(finding.why for finding in found)
        raise StageError(
            f"none of {len(said):,} answers passes its check",
            details=[f"{count:,} times: {why}" for why, count in reasons.most_common(SHOWN)],
            hint="draw more answers (sample.answers), give them more room "
            "(sample.max_new_tokens), or ask for the form that the check wants (teacher.system)",
        )
    return good


def shortest(said: Sequence[Said], most: int) -> list[Said]:
    """Of the answers to a prompt the shortest `most`, earlier draws first; all in their order."""
    ranked = sorted(range(len(said)), key=lambda number: (len(said[number].tokens), number))
    taken = Counter[str]()
    kept = list[int]()
    for number in ranked:
        record = said[number].request.record
        if taken[record] < most:
            taken[record] += 1
            kept.append(number)
    return [said[number] for number in sorted(kept)]
