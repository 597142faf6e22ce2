"""One line of a look at a machine or a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
