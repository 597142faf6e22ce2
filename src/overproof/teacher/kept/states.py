"""The last hidden states, from which the teacher's head makes the whole distribution again.

Exact, at two bytes for each number of the teacher's width: for small teachers no more than a wide
top-k cache. DeepSeek-V4 keeps its teachers' signals so (docs/papers.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from overproof.core.errors import StageError
from overproof.teacher.kept.base import ROWS, Exact, Kept, Signals, Spread, exact, not_signals
from overproof.teacher.kept.top_k import TopK, TopSignals

SPREAD = TopK(top=128)  # of a distribution, where a few tokens and a tail are asked for


@dataclass(frozen=True)
class StateSignals(Signals):
    """The last hidden state at each position, behind the final norm.

    Attributes:
        hidden_NE: bf16.
    """

    hidden_NE: Tensor

    def spread(self, head_VE: Tensor | None) -> Spread:
        """See `Signals`; at temperature 1."""
        if head_VE is None:
            raise StageError("signals that are hidden states need the teacher's head beside them")
        kept, parts = SPREAD.within(len(head_VE)), list[TopSignals]()
        for start in range(0, len(self.hidden_NE), ROWS):
            hidden_PE = self.hidden_NE[start : start + ROWS]
            for part in exact(hidden_PE.to(head_VE.dtype) @ head_VE.T, hidden_PE):
                parts.append(kept.take(part, torch.zeros(len(hidden_PE))))
        return (TopSignals.joined(parts) if parts else kept.empty(0)).spread()


@dataclass(frozen=True)
class States(Kept):
    """Everything."""

    def bytes_for(self, width: int) -> float:
        """See `Kept`."""
        return 2 * width

    def empty(self, positions: int, width: int) -> StateSignals:
        """See `Kept`."""
        return StateSignals(torch.zeros(positions, width, dtype=torch.bfloat16))

    def take(self, part: Exact, _offset_P: Tensor) -> StateSignals:
        """See `Kept`."""
        return StateSignals(part.hidden_PE.to(torch.bfloat16))

    def pack(self, signals: Signals) -> dict[str, Tensor]:
        """See `Kept`."""
        return {"hidden": signals.arrays[0]}

    def unpack(self, arrays: Mapping[str, Tensor]) -> StateSignals:
        """See `Kept`."""
        return StateSignals(arrays["hidden"])

    def from_bytes(self, data: bytes, positions: int) -> StateSignals:
        """See `Kept`."""
        if not data or len(data) % (2 * positions):
            raise not_signals(data, positions)
        values = torch.frombuffer(bytearray(data), dtype=torch.bfloat16)
        return StateSignals(values.view(positions, -1))
