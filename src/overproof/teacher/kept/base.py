"""What all kinds of kept signals have in common, and what each of them must say.

Shape suffixes: N positions, P some of them, K tokens of a position, R drawn ones, E the teacher's
width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor

Kind = TypeVar("Kind", bound="Signals")
ROWS = 16  # positions in fp32 at a time: 3 MB stay near the cache


class Spread(NamedTuple):
    """Distributions over the teacher's tokens, as some of them and a tail: what every kind gives.

    Attributes:
        ids_NK: tokens, int64. Entries of probability 0 are filler.
        probs_NK: their probabilities, fp32, most likely first; what is missing to 1 is the tail.
        drawn_NR: tokens drawn from the tail, int64; each stands for an equal share of it.
    """

    ids_NK: Tensor
    probs_NK: Tensor
    drawn_NR: Tensor

    def rows(self, which: slice | Tensor) -> Spread:
        """Some of the positions."""
        return Spread(*(array[which] for array in self))

    @property
    def tail_N(self) -> Tensor:
        """The mass of all other tokens."""
        return (1.0 - self.probs_NK.sum(-1)).clamp_min(0.0)


@dataclass(frozen=True)
class Signals(ABC):
    """The teacher's distributions at the targets of many examples, one after another.

    The fields of every kind are tensors with a row a position.
    """

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """All fields, in their order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def __len__(self) -> int:
        """Positions."""
        return len(self.arrays[0])

    def rows(self, which: slice | Tensor) -> Self:
        """Some of the positions."""
        return type(self)(*(array[which] for array in self.arrays))

    def put(self, which: Tensor, other: Self) -> None:
        """Write those of some positions."""
        for mine, theirs in zip(self.arrays, other.arrays, strict=True):
            mine[which] = theirs

    @staticmethod
    def joined(parts: Sequence[Kind]) -> Kind:
        """The positions of all parts, which are of one kind, one after another; one at least."""
        columns = zip(*(part.arrays for part in parts), strict=True)
        return type(parts[0])(*map(torch.cat, columns))

    @abstractmethod
    def spread(self, head_VE: Tensor | None) -> Spread:
        """As tokens and a tail.

        Args:
            head_VE: the teacher's output embedding, where a kind needs it.
        """


class Exact(NamedTuple):
    """The distributions at some positions, in fp32.

    Attributes:
        where: which positions.
        logits_PV: of all tokens.
        hidden_PE: the last hidden states that they come from, in the model's type.
    """

    where: slice
    logits_PV: Tensor
    hidden_PE: Tensor

    def top(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` largest logits, or all, largest first, and whose they are.

        Where logits are equal, as they often are in bf16, which comes first depends on the count.
        """
        values_PK, ids_PK = self.logits_PV.topk(min(count, self.logits_PV.shape[1]), dim=-1)
        return values_PK, ids_PK


def exact(logits_NV: Tensor, hidden_NE: Tensor) -> Iterator[Exact]:
    """The distributions of logits of any type; some positions at a time."""
    for start in range(0, len(logits_NV), ROWS):
        where = slice(start, start + ROWS)
        yield Exact(where, logits_NV[where].float(), hidden_NE[where])


@dataclass(frozen=True, kw_only=True)
class Kept(ABC):
    """How much is kept of a position, and how it lies on the disk.

    Attributes:
        prompts: whether the positions inside a prompt are kept too.
        temperature: of the distributions.
    """

    prompts: bool = False
    temperature: float = 1.0

    def within(self, _vocabulary: int) -> Self:
        """No more than there is."""
        return self

    @abstractmethod
    def bytes_for(self, width: int) -> float:
        """Bytes of a position on the disk, expected.

        Args:
            width: the teacher's.
        """

    @abstractmethod
    def empty(self, positions: int, width: int) -> Signals:
        """Room for so many positions of a teacher of this width."""

    @abstractmethod
    def take(self, part: Exact, offset_P: Tensor) -> Signals:
        """What is kept of these positions.

        Args:
            offset_P: where draws begin, a uniform number for each position.
        """

    @abstractmethod
    def pack(self, signals: Signals) -> dict[str, Tensor]:
        """As arrays for the disk."""

    @abstractmethod
    def unpack(self, arrays: Mapping[str, Tensor]) -> Signals:
        """What `pack` gave."""

    @abstractmethod
    def from_bytes(self, data: bytes, positions: int) -> Signals:
        """What `to_bytes` gave for so many positions, one at least.

        Raises:
            ValueError: these are not the signals of so many positions.
        """

    def to_bytes(self, signals: Signals) -> bytes:
        """The packed arrays one after another, in the machine's own byte order."""
        return b"".join(
            array.contiguous().view(torch.uint8).numpy().tobytes()
            for array in self.pack(signals).values()
        )


def not_signals(data: bytes, positions: int) -> ValueError:
    """What `from_bytes` raises."""
    return ValueError(f"{len(data)} bytes are no signals of {positions} positions")
