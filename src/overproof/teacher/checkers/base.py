"""What all checks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from overproof.core.section import Section

END_OF_THOUGHT = "</think>"
START_OF_THOUGHT = "<think>"
SECONDS = 5.0


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

    @abstractmethod
    def check(self, answer: str) -> Finding:
        """Judge an answer, without its reasoning; may take long, see `pool.py`."""


def final(text: str) -> str | None:
    """The answer behind the reasoning; all of it where there is none.

    None: the reasoning does not end, so there is no answer.
    """
    _, _, answer = text.rpartition(END_OF_THOUGHT)
    return None if START_OF_THOUGHT in answer else answer.strip()
