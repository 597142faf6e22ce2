"""What a service answered to one request, as it is kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self


class Tokens(NamedTuple):
    """Tokens of a prompt and of an answer, as the service counts or may count them."""

    prompt: int
    answer: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.prompt + self.answer


Candidate = tuple[str, float]  # a token's bytes in hex, and its log-probability in nats
Place = tuple[str, list[Candidate]]  # the token that was drawn, and the likeliest there


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: what it says.
        finish: why it ended, in the service's words; `stop` is an end of its own.
        model, fingerprint: who answered, by the service's word.
        used: tokens that it counted; None: it did not say.
        received: when it was whole here, seconds since 1970.
        places: the likeliest tokens at each of its tokens; None: not asked for, or not given.
    """

    text: str
    finish: str
    model: str
    fingerprint: str | None
    used: Tokens | None
    received: int
    places: list[Place] | None = None

    def to_json(self) -> dict[str, Any]:
        """For the ledger."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        used = row["used"]
        return cls(**{**row, "used": None if used is None else Tokens(*used)})
