"""One line of a look at a machine or a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from overproof.core.errors import OverproofError

State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, what to type.

    Attributes:
        state: `missing` is what a run cannot do without.
    """

    name: str
    state: State
    detail: str
    remedy: str | None = None

    @staticmethod
    def failed(name: str, error: OverproofError) -> Check:
        """What an error says, in one line."""
        return Check(name, "missing", "; ".join([error.what, *error.details]), error.hint)
