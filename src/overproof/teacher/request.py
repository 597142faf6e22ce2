"""What is asked of the teacher, how it is drawn, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from overproof.core.digest import sha256_bytes
from overproof.core.sections import SampleConfig
from overproof.teacher.example import Example
from overproof.teacher.kept import Kept, Signals


@dataclass(frozen=True)
class Request:
    """One answer to draw.

    Attributes:
        key: names it in the journal: key of the record, and number of the draw.
        ids: the prompt's tokens after the shared prefix.
        seed: of this request alone, so that its draws do not depend on any other.
        signals: whether the distributions that its answer is drawn from are kept, as much of each
            as the drawing says.
        teacher: number of the teacher that is asked; the first is 0.
    """

    key: str
    ids: tuple[int, ...]
    seed: int
    signals: bool = False
    teacher: int = 0

    @staticmethod
    def make(
        record: str,
        ids: Sequence[int],
        seed: int,
        draw: int = 0,
        *,
        signals: bool = False,
        whose: str = "",
    ) -> Request:
        """A request whose seed follows from its key and the recipe's seed.

        Args:
            record: key of the record that asks, without a slash.
            draw: number of the answer among those to this record.
            whose: who is asked, if not the teacher: each has draws of its own.
        """
        key = f"{record}/{draw}"
        own = int(sha256_bytes(f"{seed}:{whose}{key}".encode())[:15], 16)
        return Request(key, tuple(ids), own, signals)

    @property
    def record(self) -> str:
        """Key of the record that asks."""
        return self.key.partition("/")[0]


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn; what a worker needs besides the model.

    Attributes:
        signals: how much to keep of a position, of the requests that want it; None: of none.
    """

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    slots: int
    stop_ids: tuple[int, ...]
    signals: Kept | None = None

    @staticmethod
    def of(config: SampleConfig, stop_ids: tuple[int, ...], signals: Kept | None = None) -> Drawing:
        """From the recipe; each worker has the whole batch as slots."""
        return Drawing(
            config.temperature,
            config.top_p,
            config.top_k,
            config.max_new_tokens,
            config.batch,
            stop_ids,
            signals,
        )


class Answer(NamedTuple):
    """What the teacher said to a request.

    Attributes:
        tokens: the last one is a stop token, or the longest length is reached.
        signals: its distribution where it drew each of them, if the request wants it kept; before
            them those inside the prompt, if the drawing says so.
    """

    tokens: list[int]
    signals: Signals | None


class Said(NamedTuple):
    """A finished answer, and what asked for it."""

    request: Request
    tokens: list[int]

    @property
    def example(self) -> Example:
        """It as a conversation."""
        asked = self.request
        return Example(asked.record, asked.ids, tuple(self.tokens), asked.teacher)

    def positions(self, kept: Kept) -> int:
        """How many have signals."""
        return len(self.example.targets(prompt=kept.prompts))
