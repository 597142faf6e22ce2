"""Tokens drawn from the whole distribution: Random Sampling KD (arXiv 2503.16870).

The share of the draws that fell on a token is its probability in the mean, so the gradient of the
forward KL, linear in the teacher's probabilities, is right in the mean, at a tenth of the bytes of
a top-k cache. Drawn systematically, a token's number of draws differs from its share by less than
one; the paper draws one by one.

On the disk a position is the number of its different tokens, a byte; then for each, ascending, its
distance from the one before, as many bytes of seven bits as it takes; and a byte for the number of
draws of those that were drawn more than once.

Shape suffixes: N positions, R draws of each, M different tokens of all, B bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from overproof.teacher.kept.base import Exact, Kept, Signals, Spread, not_signals
from overproof.teacher.kept.draw import draw

EXPECTED_BYTES_PER_DRAW = 0.7  # measured: docs/log.md
SEVEN_BITS, MORE = 0x7F, 0x80


@dataclass(frozen=True)
class SampledSignals(Signals):
    """Draws at each position.

    Attributes:
        drawn_NR: tokens, ascending, one that was drawn twice stands here twice; int32.
    """

    drawn_NR: Tensor

    def spread(self, _head_VE: Tensor | None = None) -> Spread:
        """See `Signals`: each token's share of the draws, filler for what was drawn again."""
        ids_NR = self.drawn_NR.long()
        starts, counts = _runs(ids_NR)
        shares = torch.zeros(ids_NR.numel())
        shares[starts] = counts.float() / ids_NR.shape[1]
        probs_NK, place_NK = shares.view(ids_NR.shape).sort(dim=-1, descending=True, stable=True)
        return Spread(ids_NR.gather(1, place_NK), probs_NK, ids_NR[:, :0])


@dataclass(frozen=True)
class Sampled(Kept):
    """Draws, and nothing else.

    Attributes:
        draws: at each position, 255 at most.
    """

    draws: int

    def bytes_for(self, _width: int) -> float:
        """See `Kept`."""
        return 1 + EXPECTED_BYTES_PER_DRAW * self.draws

    def empty(self, positions: int, _width: int = 0) -> SampledSignals:
        """See `Kept`."""
        return SampledSignals(torch.zeros(positions, self.draws, dtype=torch.int32))

    def take(self, part: Exact, offset_P: Tensor) -> SampledSignals:
        """See `Kept`."""
        probs_PV = torch.softmax(part.logits_PV / self.temperature, -1)
        return SampledSignals(draw(probs_PV, offset_P, self.draws).int())

    def pack(self, signals: Signals) -> dict[str, Tensor]:
        """See `Kept`."""
        ids_NR = signals.arrays[0].long()
        starts, counts = _runs(ids_NR)
        row = starts // self.draws
        different = torch.bincount(row, minlength=len(ids_NR))
        ids_M = ids_NR.flatten()[starts]
        distance_M = ids_M - torch.where(starts % self.draws > 0, ids_M.roll(1) + 1, 0)
        often = counts > 1
        return {
            "different": different.to(torch.uint8),
            "tokens": _to_sevens(2 * distance_M + often),
            "counts": (counts[often] - 2).to(torch.uint8),
        }

    def unpack(self, arrays: Mapping[str, Tensor]) -> SampledSignals:
        """See `Kept`."""
        different_N = arrays["different"].long()
        values_M = _from_sevens(arrays["tokens"])
        often = (values_M & 1).bool()
        counts = torch.ones_like(values_M)
        counts[often] = arrays["counts"].long() + 2
        # An id is the sum of the distances so far in its position, and one for each step.
        steps_M = (values_M >> 1) + 1
        so_far_M = steps_M.cumsum(0)
        first = different_N.cumsum(0) - different_N
        before_N = torch.where(first > 0, so_far_M[(first - 1).clamp_min(0)], 0)
        ids_M = so_far_M - before_N.repeat_interleave(different_N) - 1
        drawn = ids_M.repeat_interleave(counts).int()
        return SampledSignals(drawn.view(len(different_N), self.draws))

    def from_bytes(self, data: bytes, positions: int) -> SampledSignals:
        """See `Kept`."""
        values = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)
        different, rest = values[:positions], values[positions:]
        ends = torch.nonzero(rest < MORE)[:, 0]
        tokens = int(different.sum())
        if len(data) < positions or not 0 < tokens <= len(ends):
            raise not_signals(data, positions)
        at = int(ends[tokens - 1]) + 1
        arrays = {"different": different, "tokens": rest[:at], "counts": rest[at:]}
        often = int((_from_sevens(arrays["tokens"]) & 1).sum())
        draws = tokens + often + int(arrays["counts"].sum())
        if len(arrays["counts"]) != often or draws != positions * self.draws:
            raise not_signals(data, positions)
        return self.unpack(arrays)


def _runs(ids_NR: Tensor) -> tuple[Tensor, Tensor]:
    """Where, in the flattened draws, each run of equal tokens of a position begins; its length."""
    new_NR = torch.ones_like(ids_NR, dtype=torch.bool)
    new_NR[:, 1:] = ids_NR[:, 1:] != ids_NR[:, :-1]
    starts = torch.nonzero(new_NR.flatten())[:, 0]
    return starts, torch.diff(starts, append=starts.new_tensor([ids_NR.numel()]))


def _to_sevens(values_M: Tensor) -> Tensor:
    """Each number as bytes of seven bits, the low ones first; the top bit says that more follow."""
    size_M = torch.ones_like(values_M)
    for bits in range(7, 64, 7):
        if not bool((values_M >> bits).any()):
            break
        size_M += values_M >= 1 << bits
    begin_M = size_M.cumsum(0) - size_M
    bytes_B = torch.zeros(int(size_M.sum()), dtype=torch.uint8)
    for place in range(int(size_M.max()) if len(size_M) else 0):
        there = size_M > place
        low = (values_M[there] >> 7 * place) & SEVEN_BITS
        more = MORE * (size_M[there] > place + 1)
        bytes_B[begin_M[there] + place] = (low + more).to(torch.uint8)
    return bytes_B


def _from_sevens(bytes_B: Tensor) -> Tensor:
    """What `_to_sevens` was given."""
    last_B = bytes_B < MORE
    number_B = last_B.cumsum(0) - last_B.long()
    ends = torch.nonzero(last_B)[:, 0]
    begin_M = torch.cat([ends.new_zeros(1), ends[:-1] + 1]) if len(ends) else ends
    place_B = torch.arange(len(bytes_B)) - begin_M[number_B]
    parts_B = (bytes_B.long() & SEVEN_BITS) << 7 * place_B
    return torch.zeros(len(ends), dtype=torch.long).index_add_(0, number_B, parts_B)
