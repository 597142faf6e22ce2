"""What is kept of the teacher's distribution at a position: its most likely tokens, and a tail.

Without the tail, the mass of all other tokens, a truncated divergence is none: it can be negative.
How the mass lies among them is kept by sampling: a few of them are drawn in proportion to their
probability and stand for all, so that gradients are right in the mean (Random Sampling KD,
arXiv 2503.16870, which draws the likely tokens too).

Shape suffixes: N positions, P some of them, K most likely tokens, R drawn ones, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from overproof.core.config import SignalConfig
from overproof.core.disk import write_atomic

ROWS = 16  # positions in fp32 at a time: 3 MB stay near the cache
BLOCK = 64  # tokens whose mass is summed first: a draw looks into one block only
SHARD_EXAMPLES = 128  # examples a shard of a cache
ARRAYS = ("ids", "log_probs", "tail", "drawn")  # of a shard's file, in the order of the fields


class Kept(NamedTuple):
    """How much is kept of a position.

    Attributes:
        top: most likely tokens. drawn: tokens drawn from all others.
        prompts: whether the positions inside a prompt are kept too.
        temperature: of the distributions.
    """

    top: int
    drawn: int = 0
    prompts: bool = False
    temperature: float = 1.0

    @staticmethod
    def of(config: SignalConfig) -> Kept:
        """As the recipe says."""
        return Kept(config.top_k, config.tail_draws, config.prompts, config.temperature)

    def within(self, vocabulary: int) -> Kept:
        """No more than there is: where every token is kept, none is left to be drawn."""
        return self if self.top < vocabulary else self._replace(top=vocabulary, drawn=0)

    @property
    def bytes(self) -> int:
        """Bytes of one position: ids and fp16 log-probabilities, the tail's mass, drawn ids."""
        return 6 * self.top + 4 + 4 * self.drawn


@dataclass(frozen=True)
class Signals:
    """The teacher's distributions at the targets of many examples, one after another.

    Attributes:
        ids_NK: the most likely tokens, most likely first; int32.
        log_probs_NK: their log-probabilities, nats, fp16.
        tail_N: log of the mass of all other tokens, nats, fp32.
        drawn_NR: of these, some drawn by their probability; int32. Each stands for an equal share
            of the tail; one that was drawn twice stands here twice.
    """

    ids_NK: Tensor
    log_probs_NK: Tensor
    tail_N: Tensor
    drawn_NR: Tensor

    @staticmethod
    def empty(positions: int, kept: Kept) -> Signals:
        """Room for so many positions."""
        return Signals(
            torch.zeros(positions, kept.top, dtype=torch.int32),
            torch.zeros(positions, kept.top, dtype=torch.float16),
            torch.zeros(positions),
            torch.zeros(positions, kept.drawn, dtype=torch.int32),
        )

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """All of them, in the order of the fields."""
        return self.ids_NK, self.log_probs_NK, self.tail_N, self.drawn_NR

    def rows(self, which: slice | Tensor) -> Signals:
        """Some of the positions."""
        return Signals(*(array[which] for array in self.arrays))

    def put(self, which: Tensor, other: Signals) -> None:
        """Write those of some positions."""
        for mine, theirs in zip(self.arrays, other.arrays, strict=True):
            mine[which] = theirs

    @staticmethod
    def joined(parts: Sequence[Signals]) -> Signals:
        """The positions of all parts, one after another."""
        return Signals(*map(torch.cat, zip(*(part.arrays for part in parts), strict=True)))

    def to_bytes(self) -> bytes:
        """The arrays, one after another, in the machine's own byte order."""
        return b"".join(array.contiguous().numpy().tobytes() for array in self.arrays)

    @staticmethod
    def from_bytes(data: bytes, positions: int, drawn: int) -> Signals:
        """What `to_bytes` gave for so many positions, one at least.

        Raises:
            ValueError: the length is not that of so many positions with so many drawn tokens.
        """
        top, rest = divmod(len(data) // positions - Kept(0, drawn).bytes, Kept(1).bytes - 4)
        if rest or top < 0 or len(data) != positions * Kept(top, drawn).bytes:
            raise ValueError(f"{len(data)} bytes are no signals of {positions} positions")
        found, at = Signals.empty(positions, Kept(top, drawn)), 0
        for array in found.arrays:
            values = array.numpy()
            values[:] = np.frombuffer(data, values.dtype, values.size, at).reshape(values.shape)
            at += values.nbytes
        return found


class Exact(NamedTuple):
    """The distributions at some positions, in fp32.

    Attributes:
        where: which positions.
        logits_PV: of all tokens.
    """

    where: slice
    logits_PV: Tensor

    def top(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` largest logits, or all, largest first, and whose they are.

        Where logits are equal, as they often are in bf16, which comes first depends on the count.
        """
        values_PK, ids_PK = self.logits_PV.topk(min(count, self.logits_PV.shape[1]), dim=-1)
        return values_PK, ids_PK

    def signals(self, kept: Kept, offset_P: Tensor) -> Signals:
        """What is kept of these positions.

        Args:
            offset_P: where the draws begin, a uniform number for each position.
        """
        values_PK, ids_PK = self.top(kept.top)
        largest_P1 = values_PK[:, :1]
        exp_PV = ((self.logits_PV - largest_P1) / kept.temperature).exp_()
        normaliser_P1 = exp_PV.sum(-1, keepdim=True).log_()
        log_probs_PK = ((values_PK - largest_P1) / kept.temperature - normaliser_P1).half()
        # The tail is what the stored, rounded log-probabilities leave of 1.
        tail_P = torch.log1p(-log_probs_PK.float().exp().sum(-1).clamp_max(1.0))
        drawn_PR = draw(exp_PV.scatter_(1, ids_PK, 0.0), offset_P, kept.drawn)
        return Signals(ids_PK.int(), log_probs_PK, tail_P, drawn_PR.int())


def exact(logits_NV: Tensor) -> Iterator[Exact]:
    """The distributions of logits of any type; some positions at a time."""
    for start in range(0, len(logits_NV), ROWS):
        where = slice(start, start + ROWS)
        yield Exact(where, logits_NV[where].float())


def draw(mass_PV: Tensor, offset_P: Tensor, count: int) -> Tensor:
    """Draw tokens in proportion to their mass, by systematic sampling.

    The masses of a position lie end to end, and `count` points at equal distances are laid over
    them, the first at the offset: a token's expected number is exactly its share of the count, and
    the actual one differs from it by less than one (Madow 1949, doi 10.1214/aoms/1177729988).

    Args:
        offset_P: uniform numbers in [0, 1).

    Returns:
        tokens of mass above 0, where there are any, (P, count), in ascending order.
    """
    if not count:
        return torch.zeros(len(mass_PV), 0, dtype=torch.long)
    missing = -mass_PV.shape[1] % BLOCK
    blocks_PSB = F.pad(mass_PV, (0, missing)).unflatten(1, (-1, BLOCK))
    sums_PS = blocks_PSB.sum(-1)
    ends_PS = sums_PS.cumsum(-1)
    points_PR = (offset_P.float()[:, None] + torch.arange(count)) / count * ends_PS[:, -1:]
    # In fp32 the last point can be the end itself, behind which no token lies.
    points_PR = points_PR.minimum(torch.nextafter(ends_PS[:, -1:], torch.zeros(())))
    block_PR = torch.searchsorted(ends_PS, points_PR, right=True).clamp_max(ends_PS.shape[1] - 1)
    before_PR = (ends_PS - sums_PS).gather(1, block_PR)
    inside_PRB = blocks_PSB[torch.arange(len(mass_PV))[:, None], block_PR]
    passed_PRB = inside_PRB.cumsum(-1) <= (points_PR - before_PR)[..., None]
    place_PR = passed_PRB.sum(-1).clamp_max(BLOCK - 1)
    # Rounding can lead to a token beside the one meant, which may have no mass.
    nothing_PR = inside_PRB.gather(-1, place_PR[..., None])[..., 0] == 0
    place_PR = torch.where(nothing_PR, inside_PRB.argmax(-1), place_PR)
    return (block_PR * BLOCK + place_PR).clamp_max(mass_PV.shape[1] - 1)


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard of a cache lies."""
    return folder / f"signals-{number:05d}.safetensors"


def shard_files(folder: Path) -> list[Path]:
    """All shards of a finished cache, in the order of the examples."""
    return sorted(folder.glob("signals-*.safetensors"))


def write_shard(path: Path, signals: Signals) -> None:
    """Write one shard, whole or not at all."""
    write_atomic(path, save(dict(zip(ARRAYS, signals.arrays, strict=True))))


class SignalCache(Iterable[Signals]):
    """A finished cache: its shards, one at a time, in the order of the examples.

    A long run's signals take gigabytes, a shard ten megabytes.

    Args:
        only: which of all positions are wanted; None: every one.
    """

    def __init__(self, folder: Path, only: NDArray[np.bool_] | None = None) -> None:
        self._shards = shard_files(folder)
        self._only = only

    def __iter__(self) -> Iterator[Signals]:
        start = 0
        for path in self._shards:
            shard = load_file(path)
            found = Signals(*(shard[name] for name in ARRAYS))
            which = slice(start, start + len(found.tail_N))
            start = which.stop
            if self._only is not None:
                found = found.rows(torch.from_numpy(self._only[which]))
            yield found
