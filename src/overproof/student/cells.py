"""A target over cells of the student's tokens: what a teacher of other tokens can say.

Shape suffixes: P positions, V student vocabulary, C cells, the student's own next token as one more
behind them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from overproof.student.divergences import Divergence
from overproof.student.losses import Chunk, Target


class Cells(NamedTuple):
    """A target over cells.

    Attributes:
        inner: the same over C + 1 classes: the cells, and behind them the own token.
        cell_V: of each student token.
        cells: how many there are.
        own_N: the student's next token, taken out of its cell; -1: none is.
    """

    inner: Target
    cell_V: Tensor
    cells: int
    own_N: Tensor

    def to(self, device: torch.device) -> Cells:
        """See `Target`."""
        return self._replace(
            inner=self.inner.to(device), cell_V=self.cell_V.to(device), own_N=self.own_N.to(device)
        )

    def chunk(self, which: slice) -> CellsChunk:
        """See `Target`."""
        return CellsChunk(self.inner.chunk(which), self.cell_V, self.cells, self.own_N[which])


class CellsChunk(NamedTuple):
    """That of a chunk of positions."""

    inner: Chunk
    cell_V: Tensor
    cells: int
    own_C: Tensor

    def divergence_(
        self, which: slice, logits_PV: Tensor, weight_P: Tensor, divergence: Divergence
    ) -> Tensor:
        """See `Chunk`: that between the masses of the cells.

        A cell's logit is the logarithm of the sum of its tokens' exponentials; its gradient goes to
        the tokens by their share of the cell, so nothing is said of how they share it.
        """
        own_P = self.own_C[which]
        cell_PV = self.cell_V.expand(logits_PV.shape).clone()
        rows = torch.nonzero(own_P >= 0)[:, 0]
        cell_PV[rows, own_P[rows]] = self.cells
        exp_PV = logits_PV.sub_(logits_PV.amax(-1, keepdim=True)).exp_()
        sums_PC = exp_PV.new_zeros(len(own_P), self.cells + 1).scatter_add_(-1, cell_PV, exp_PV)
        sums_PC.clamp_min_(torch.finfo(sums_PC.dtype).tiny)
        grad_PC = sums_PC.log()
        loss_P = self.inner.divergence_(which, grad_PC, weight_P, divergence)
        exp_PV.mul_(grad_PC.div_(sums_PC).gather(-1, cell_PV))
        return loss_P
