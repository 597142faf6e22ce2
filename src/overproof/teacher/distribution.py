"""What is kept of the teacher's distribution at a position: its most likely tokens, and a tail.

Without the tail, the mass of all other tokens, a truncated divergence is none: it can be negative.

Shape suffixes: N positions, R some of them, K kept tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROWS = 16  # positions in fp32 at a time: 3 MB stay near the cache
SHARD_EXAMPLES = 128  # examples a shard of a cache


@dataclass(frozen=True)
class Signals:
    """The teacher's distributions at the answer positions of many examples, one after another.

    Attributes:
        ids_NK: the most likely tokens, most likely first; int32.
        log_probs_NK: their log-probabilities, nats, fp16.
        tail_N: log of the mass of all other tokens, nats, fp32.
    """

    ids_NK: Tensor
    log_probs_NK: Tensor
    tail_N: Tensor

    def rows(self, which: slice | Tensor) -> Signals:
        """Some of the positions."""
        return Signals(self.ids_NK[which], self.log_probs_NK[which], self.tail_N[which])

    def put(self, which: Tensor, other: Signals) -> None:
        """Write those of some positions."""
        self.ids_NK[which] = other.ids_NK
        self.log_probs_NK[which] = other.log_probs_NK
        self.tail_N[which] = other.tail_N

    @staticmethod
    def joined(parts: Sequence[Signals]) -> Signals:
        """The positions of all parts, one after another."""
        return Signals(
            torch.cat([part.ids_NK for part in parts]),
            torch.cat([part.log_probs_NK for part in parts]),
            torch.cat([part.tail_N for part in parts]),
        )

    def to_bytes(self) -> bytes:
        """The three arrays, one after another, in the machine's own byte order."""
        arrays = (self.ids_NK, self.log_probs_NK, self.tail_N)
        return b"".join(array.contiguous().numpy().tobytes() for array in arrays)

    @staticmethod
    def from_bytes(data: bytes, positions: int) -> Signals:
        """What `to_bytes` gave for so many positions, one at least.

        Raises:
            ValueError: the length is not that of so many positions.
        """
        kept, rest = divmod(len(data) // positions - 4, 6)  # 4 + 2 bytes a token, 4 for the tail
        if rest or len(data) != positions * (6 * kept + 4):
            raise ValueError(f"{len(data)} bytes are no signals of {positions} positions")
        count = positions * kept
        ids = np.frombuffer(data, np.int32, count)
        log_probs = np.frombuffer(data, np.float16, count, 4 * count)
        tail = np.frombuffer(data, np.float32, positions, 6 * count)
        return Signals(
            torch.from_numpy(ids.reshape(positions, kept).copy()),
            torch.from_numpy(log_probs.reshape(positions, kept).copy()),
            torch.from_numpy(tail.copy()),
        )


class Top(NamedTuple):
    """The largest logits of some positions, in fp32.

    Attributes:
        where: which positions.
        logits_RK: largest first; `ids_RK`: whose they are.
        normaliser_R: log of the sum of the exponentials of all logits.
    """

    where: slice
    logits_RK: Tensor
    ids_RK: Tensor
    normaliser_R: Tensor

    def signals(self, count: int) -> Signals:
        """What is kept of these positions: the `count` most likely tokens."""
        log_probs_RK = (self.logits_RK[:, :count] - self.normaliser_R[:, None]).half()
        # The tail is what the stored, rounded log-probabilities leave of 1.
        tail_R = torch.log1p(-log_probs_RK.float().exp().sum(-1).clamp_max(1.0))
        return Signals(self.ids_RK[:, :count].int(), log_probs_RK, tail_R)


def top(logits_NV: Tensor, count: int) -> Iterator[Top]:
    """The `count` largest logits of each position, or all of them; some positions at a time."""
    for start in range(0, len(logits_NV), ROWS):
        where = slice(start, start + ROWS)
        exact = logits_NV[where].float()
        values, ids = exact.topk(min(count, exact.shape[-1]), dim=-1)
        yield Top(where, values, ids, exact.logsumexp(-1))


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard of a cache lies."""
    return folder / f"signals-{number:05d}.safetensors"


def shard_files(folder: Path) -> list[Path]:
    """All shards of a finished cache, in the order of the examples."""
    return sorted(folder.glob("signals-*.safetensors"))


def write_shard(path: Path, signals: Signals) -> None:
    """Write one shard, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    arrays = {
        "ids": signals.ids_NK,
        "log_probs": signals.log_probs_NK,
        "tail": signals.tail_N,
    }
    save_file(arrays, temporary)
    temporary.replace(path)


class SignalCache(Iterable[Signals]):
    """A finished cache: its shards, one at a time, in the order of the examples.

    A long run's signals take gigabytes, a shard ten megabytes.
    """

    def __init__(self, folder: Path) -> None:
        self._shards = shard_files(folder)

    def __iter__(self) -> Iterator[Signals]:
        for path in self._shards:
            shard = load_file(path)
            yield Signals(shard["ids"], shard["log_probs"], shard["tail"])
