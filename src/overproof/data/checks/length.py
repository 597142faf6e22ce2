"""Length: no empty text, and a bound on the canonical record."""

from __future__ import annotations

from dataclasses import dataclass

from overproof.data.checks import Candidate, Finding
from overproof.data.records import normalise


@dataclass(frozen=True)
class Length:
    """Finds texts of nothing but white space, and records over the limit.

    Attributes:
        max_bytes: longest canonical form allowed, bytes.
    """

    max_bytes: int
    name: str = "length"
    version: str = "1"

    def __call__(self, candidate: Candidate) -> list[Finding]:
        """`empty` for each empty text, `too-long` for the record."""
        found = [
            Finding("empty", part, 0, len(text))
            for part, text in candidate.record.parts()
            if not normalise(text)
        ]
        if len(candidate.form) > self.max_bytes:
            found.append(Finding("too-long", "record", 0, len(candidate.form)))
        return found
