"""The most likely tokens exactly, the tail's mass, and a few tokens drawn from the tail.

Without the tail, the mass of all other tokens, a truncated divergence is none: it can be negative.
How the mass lies among them is kept by sampling: a few of them are drawn in proportion to their
probability and stand for all, so that the gradient of the forward KL is right in the mean
(docs/adr/0014).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from overproof.teacher.kept.base import Exact, Kept, Signals, Spread, not_signals
from overproof.teacher.kept.draw import draw


@dataclass(frozen=True)
class TopSignals(Signals):
    """The most likely tokens at each position, and a tail.

    Attributes:
        ids_NK: the most likely tokens, most likely first; int32.
        log_probs_NK: their log-probabilities, nats, fp16.
        tail_N: log of the mass of all other tokens, nats, fp32.
        drawn_NR: of these, some drawn by their probability; int32. One that was drawn twice stands
            here twice.
    """

    ids_NK: Tensor
    log_probs_NK: Tensor
    tail_N: Tensor
    drawn_NR: Tensor

    def spread(self, _head_VE: Tensor | None = None) -> Spread:
        """See `Signals`.

        What fp16 has rounded is scaled to what the tail leaves of 1: else the likely tokens could
        make 1 by themselves, and a small tail would be lost.
        """
        probs_NK = self.log_probs_NK.float().exp()
        kept_N1 = -torch.expm1(self.tail_N)[:, None]
        probs_NK *= kept_N1 / probs_NK.sum(-1, keepdim=True).clamp_min(torch.finfo().tiny)
        return Spread(self.ids_NK.long(), probs_NK, self.drawn_NR.long())


@dataclass(frozen=True)
class TopK(Kept):
    """Top-k with a tail.

    Attributes:
        top: most likely tokens. drawn: tokens drawn from all others.
    """

    top: int
    drawn: int = 0

    def within(self, vocabulary: int) -> Self:
        """Where every token is kept, none is left to be drawn."""
        return self if self.top < vocabulary else replace(self, top=vocabulary, drawn=0)

    def bytes_for(self, _width: int) -> float:
        """See `Kept`: ids and fp16 log-probabilities, the tail's mass, drawn ids."""
        return 6 * self.top + 4 + 4 * self.drawn

    def empty(self, positions: int, _width: int = 0) -> TopSignals:
        """See `Kept`."""
        return TopSignals(
            torch.zeros(positions, self.top, dtype=torch.int32),
            torch.zeros(positions, self.top, dtype=torch.float16),
            torch.zeros(positions),
            torch.zeros(positions, self.drawn, dtype=torch.int32),
        )

    def take(self, part: Exact, offset_P: Tensor) -> TopSignals:
        """See `Kept`."""
        values_PK, ids_PK = part.top(self.top)
        largest_P1 = values_PK[:, :1]
        exp_PV = ((part.logits_PV - largest_P1) / self.temperature).exp_()
        normaliser_P1 = exp_PV.sum(-1, keepdim=True).log_()
        log_probs_PK = ((values_PK - largest_P1) / self.temperature - normaliser_P1).half()
        exp_PV.scatter_(1, ids_PK, 0.0)
        # Summed over the other tokens: what the kept ones leave of 1 would have few digits.
        tail_P = exp_PV.sum(-1).log_() - normaliser_P1[:, 0]
        drawn_PR = draw(exp_PV, offset_P, self.drawn)
        return TopSignals(ids_PK.int(), log_probs_PK, tail_P, drawn_PR.int())

    def pack(self, signals: Signals) -> dict[str, Tensor]:
        """See `Kept`."""
        return dict(zip(("ids", "log_probs", "tail", "drawn"), signals.arrays, strict=True))

    def unpack(self, arrays: Mapping[str, Tensor]) -> TopSignals:
        """See `Kept`."""
        return TopSignals(arrays["ids"], arrays["log_probs"], arrays["tail"], arrays["drawn"])

    def from_bytes(self, data: bytes, positions: int) -> TopSignals:
        """See `Kept`."""
        if len(data) != positions * self.bytes_for(0):
            raise not_signals(data, positions)
        found, at = self.empty(positions), 0
        for array in found.arrays:
            values = array.numpy()
            values[:] = np.frombuffer(data, values.dtype, values.size, at).reshape(values.shape)
            at += values.nbytes
        return found
