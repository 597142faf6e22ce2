"""Tokens drawn from the whole distribution: Random Sampling KD (arXiv 2503.16870).

The share of the draws that fell on a token is its probability in the mean, so the gradient of the
forward KL, linear in the teacher's probabilities, is right in the mean, at a tenth of the bytes of
a top-k cache. Drawn systematically, a token's number of draws differs from its share by less than
one; the paper draws one by one.

On the disk a position is the number of its entries, and for each three bytes: id and number of
draws. Shape suffixes: N positions, R draws of each, M entries of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from overproof.teacher.kept.base import Exact, Kept, Signals, Spread, not_signals
from overproof.teacher.kept.draw import draw

ENTRY_BITS, ENTRY_BYTES = 24, 3
EXPECTED_ENTRIES = 12  # different tokens of a position; arXiv 2503.16870 and docs/log.md


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
        first_NR = _first(ids_NR, ids_NR.shape[1])
        # A run's length, at its first place: how far it is from there to the next run.
        starts = torch.nonzero(first_NR.flatten())[:, 0]
        ends = torch.cat([starts[1:], starts.new_tensor([ids_NR.numel()])])
        shares = torch.zeros(ids_NR.numel())
        shares[starts] = (ends - starts).float() / ids_NR.shape[1]
        probs_NK, place_NK = shares.view(ids_NR.shape).sort(dim=-1, descending=True, stable=True)
        return Spread(ids_NR.gather(1, place_NK), probs_NK, ids_NR[:, :0])


@dataclass(frozen=True)
class Sampled(Kept):
    """Draws, and nothing else.

    Attributes:
        draws: at each position.
        id_bits: of an entry's 24, those that hold the id; the others hold the number of draws.
    """

    draws: int
    id_bits: int = 18  # 262,144 tokens, and 64 draws an entry

    def within(self, vocabulary: int) -> Self:
        """Larger vocabularies leave fewer bits for the number: entries repeat sooner."""
        return replace(self, id_bits=max(self.id_bits, (vocabulary - 1).bit_length()))

    def bytes_for(self, _width: int) -> float:
        """See `Kept`."""
        return 1 + ENTRY_BYTES * EXPECTED_ENTRIES

    def empty(self, positions: int, _width: int = 0) -> SampledSignals:
        """See `Kept`."""
        return SampledSignals(torch.zeros(positions, self.draws, dtype=torch.int32))

    def take(self, part: Exact, offset_P: Tensor) -> SampledSignals:
        """See `Kept`."""
        probs_PV = torch.softmax(part.logits_PV / self.temperature, -1)
        return SampledSignals(draw(probs_PV, offset_P, self.draws).int())

    def pack(self, signals: Signals) -> dict[str, Tensor]:
        """See `Kept`."""
        (drawn_NR,) = signals.arrays
        count_bits = ENTRY_BITS - self.id_bits
        first_NR = _first(drawn_NR, 1 << count_bits)
        starts = torch.nonzero(first_NR.flatten())[:, 0]
        ends = torch.cat([starts[1:], starts.new_tensor([drawn_NR.numel()])])[: len(starts)]
        entries_M = (drawn_NR.flatten()[starts].long() << count_bits) | (ends - starts - 1)
        packed = entries_M.int()[:, None].view(torch.uint8)[:, :ENTRY_BYTES]
        return {"entries": first_NR.sum(-1).to(torch.uint8), "packed": packed.contiguous()}

    def unpack(self, arrays: Mapping[str, Tensor]) -> SampledSignals:
        """See `Kept`."""
        packed = torch.zeros(len(arrays["packed"]), 4, dtype=torch.uint8)
        packed[:, :ENTRY_BYTES] = arrays["packed"]
        entries_M = packed.view(torch.int32)[:, 0]
        count_bits = ENTRY_BITS - self.id_bits
        counts_M = (entries_M & ((1 << count_bits) - 1)) + 1
        drawn = (entries_M >> count_bits).repeat_interleave(counts_M)
        return SampledSignals(drawn.view(len(arrays["entries"]), self.draws))

    def from_bytes(self, data: bytes, positions: int) -> SampledSignals:
        """See `Kept`."""
        values = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)
        entries, packed = values[:positions], values[positions:]
        if len(data) < positions or len(packed) != ENTRY_BYTES * int(entries.sum()):
            raise not_signals(data, positions)
        try:
            return self.unpack({"entries": entries, "packed": packed.view(-1, ENTRY_BYTES)})
        except RuntimeError as error:  # the draws are not as many at every position
            raise not_signals(data, positions) from error


def _first(ids_NR: Tensor, most: int) -> Tensor:
    """Where a run of equal tokens begins, or, within one, every `most` places."""
    place_R = torch.arange(ids_NR.shape[1])
    new_NR = torch.ones_like(ids_NR, dtype=torch.bool)
    new_NR[:, 1:] = ids_NR[:, 1:] != ids_NR[:, :-1]
    begin_NR = torch.where(new_NR, place_R, 0).cummax(-1).values
    return (place_R - begin_NR) % most == 0
