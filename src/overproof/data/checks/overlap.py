"""Overlap: a record whose key stands in another data set, such as the held-out split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overproof.data.checks import Candidate, Finding
from overproof.data.keys import holds


@dataclass(frozen=True)
class Overlap:
    """Finds records of another data set: exact or normalised match only.

    Attributes:
        keys: the keys of that data set, sorted.
    """

    keys: Sequence[bytes]
    name: str = "overlap"
    version: str = "1"

    def __call__(self, candidate: Candidate) -> list[Finding]:
        """`excluded` if the key is there."""
        if holds(self.keys, candidate.key):
            return [Finding("excluded", "record", 0, len(candidate.form))]
        return []
