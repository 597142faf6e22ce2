"""Checks: one file each, each a pure function of one record.

`duplicates` is the exception: it compares records, so it works on their sorted keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from overproof.data.records import Record

Action = Literal["reject", "warn"]


@dataclass(frozen=True)
class Candidate:
    """A record that awaits its checks, with its canonical form and key computed once."""

    record: Record
    form: bytes
    key: bytes


@dataclass(frozen=True)
class Finding:
    """One thing found in a record: what and where, never the value itself.

    Attributes:
        kind: a fixed word, such as `email`.
        part: the text it stands in, such as `messages[0].content`; `record` for the whole.
        start: first character (Unicode code point) in that text.
        end: one past the last character.
    """

    kind: str
    part: str
    start: int
    end: int

    def to_json(self) -> dict[str, Any]:
        """For a row of a data set."""
        return {"kind": self.kind, "part": self.part, "start": self.start, "end": self.end}

    def __str__(self) -> str:
        if self.part == "record":
            return self.kind
        return f"{self.kind} in {self.part}, characters {self.start} to {self.end}"


class Check(Protocol):
    """What every check is.

    Attributes:
        name: stands before the kind in a reason, as in `personal:email`.
        version: number of our own rules, with the versions of the libraries that decide.
    """

    @property
    def name(self) -> str:
        """Name in reasons and in the certificate."""

    @property
    def version(self) -> str:
        """Changes whenever the same record may get another result."""

    def __call__(self, candidate: Candidate) -> Sequence[Finding]:
        """What it finds in one record."""
