"""What all checks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from overproof.core.section import Section

END_OF_THOUGHT = "</think>"
START_OF_THOUGHT = "<think>"
SECONDS = 10.0


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        passed: the answer is right.
        why: in a few words, what was got and what was wanted; empty where it is right.
    """

    passed: bool
    why: str = ""


class Checker(Section, ABC):
    """One kind of check, with what is right."""

    @property
    def most_seconds(self) -> float:
        """After so long it is ended, and the answer counts as wrong."""
        return SECONDS

    def prepare(self) -> None:
        """Import what it needs and refuse what cannot work, before the time of a check runs."""

    @abstractmethod
    def check(self, answer: str) -> Finding:
        """Judge an answer, without its reasoning; may take long, see `pool.py`."""


def final(text: str, *, thinking: bool = False) -> str | None:
    """The answer behind the reasoning; all of it where there is none.

    Args:
        thinking: the prompt has begun the reasoning, as templates of reasoning models do.

    Returns:
        None: the reasoning does not end, so there is no answer.
    """
    _, end, answer = text.rpartition(END_OF_THOUGHT)
    if START_OF_THOUGHT in answer or (thinking and not end):
        return None
    return answer.strip()


def thinks(prompt: str) -> bool:
    """Whether a rendered prompt ends inside reasoning that it has begun."""
    return START_OF_THOUGHT in prompt.rpartition(END_OF_THOUGHT)[2]
