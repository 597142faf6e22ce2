"""The loss of many positions, in a form that never holds (tokens, vocabulary).

What is known of the teacher is a `Target`: a few tokens and a tail, or its last hidden states. Any
divergence goes with any of them (`divergences.py`).

Shape suffixes: N positions, C positions of one chunk, P positions of a part of it, D model width,
E the teacher's width, V student vocabulary, U teacher vocabulary, K kept teacher tokens a position,
R tokens drawn from the teacher's tail.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from overproof.student.divergences import FORWARD_KL, Classes, Divergence, Part

CHUNK_POSITIONS = 512  # of one matrix product; its logits are held in the type of the product
CACHE_BYTES = 1 << 20  # of fp32 logits worked on at a time: seven passes, all in the L2 cache


class Target(Protocol):
    """What is known of the teacher's distributions at some positions, over the student's tokens."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""

    def chunk(self, which: slice) -> Chunk:
        """That of some positions, ready to be worked on."""


class Chunk(Protocol):
    """The target of a chunk of positions."""

    def divergence_(
        self, which: slice, logits_PV: Tensor, weight_P: Tensor, divergence: Divergence
    ) -> Tensor:
        """The divergence of some of them, (P,), in nats.

        Args:
            which: some positions of the chunk.
            logits_PV: the student's, fp32 or fp64; they become their gradient, times the weight.
        """


class Sparse(NamedTuple):
    """The teacher's most likely tokens, their probabilities, and tokens drawn from the others.

    Attributes:
        ids_NK: kept token ids. Those with a probability above 0 are distinct within a row;
            entries of probability 0 are filler and belong to the tail.
        probs_NK: the teacher's probabilities of them; what is missing to 1 is the tail.
        drawn_NR: tokens drawn from the teacher's tail by their probability; each stands for an
            equal share of it. R = 0: the student's tail is scaled as a whole.
    """

    ids_NK: Tensor
    probs_NK: Tensor
    drawn_NR: Tensor

    @staticmethod
    def of(ids_NK: Tensor, probs_NK: Tensor, drawn_NR: Tensor | None = None) -> Sparse:
        """With or without drawn tokens."""
        return Sparse(ids_NK, probs_NK, ids_NK[:, :0] if drawn_NR is None else drawn_NR)

    def to(self, device: torch.device) -> Sparse:
        """See `Target`."""
        return Sparse(*(array.to(device) for array in self))

    def chunk(self, which: slice) -> Sparse:
        """See `Target`."""
        return Sparse(*(array[which] for array in self))

    def divergence_(
        self, which: slice, logits_PV: Tensor, weight_P: Tensor, divergence: Divergence
    ) -> Tensor:
        """See `Chunk`, on K + 1 classes: the kept tokens, and one bucket for all others.

        The bucket makes the truncated sum a divergence again: without it the sum can be negative
        and pushes the student's mass out of the kept tokens (docs/papers.md, "tail bucket"). With
        K = V the bucket is empty and this is the dense divergence.

        With tokens drawn from the tail the gradient of the forward KL is that over the whole
        vocabulary, in the mean over the draws (docs/adr/0014); the value stays that of the K + 1
        classes. The other divergences are not linear in the teacher's probabilities and have no
        use for draws.

        Five passes over (P, V), nothing of that size made (docs/log.md has the measurement).
        """
        ids_PK, drawn_PR = self.ids_NK[which], self.drawn_NR[which]
        probs_PK = self.probs_NK[which].to(logits_PV.dtype)
        kept_PK = probs_PK > 0
        largest_P1 = logits_PV.amax(-1, keepdim=True)
        own_PK = logits_PV.gather(-1, ids_PK) - largest_P1
        exp_PV = logits_PV.sub_(largest_P1).exp_()
        exp_PK = torch.where(kept_PK, exp_PV.gather(-1, ids_PK), 0.0)
        # The tail's mass is summed over the other tokens: 1 - sum(kept) would lose all its digits.
        exp_PV.scatter_add_(-1, ids_PK, -exp_PK)
        tail_P = exp_PV.sum(-1)
        sum_P = tail_P + exp_PK.sum(-1)
        tail_q_P = (tail_P / sum_P).clamp_min(torch.finfo(exp_PV.dtype).tiny)
        draws = drawn_PR.shape[-1] if divergence.linear else 0
        tail_p_P = (1.0 - probs_PK.sum(-1)).clamp_min(0.0)
        if not draws:  # where every token is kept, what rounding leaves of 1 is no tail
            tail_p_P *= kept_PK.sum(-1) < logits_PV.shape[-1]
        alone_P = probs_PK.amax(-1) >= 1.0
        own = Classes.of(probs_PK, own_PK - sum_P.log().unsqueeze(-1))
        kept = _parts(own, divergence, alone_P.unsqueeze(-1))
        tail = _parts(Classes.of(tail_p_P, tail_q_P.log()), divergence, alone_P)
        slope_PK = torch.where(kept_PK, kept.slope_K, 0.0)
        # d/dz of a token: its slope less its q times the sum of all slopes; the bucket's slope is
        # spread over its tokens by their q, or, what the teacher has of it, over the drawn ones.
        slopes_P = slope_PK.sum(-1) + tail.slope_K
        in_tail_P = 1.0 if draws else tail.slope_K / tail_q_P
        exp_PV.mul_(((in_tail_P - slopes_P) / sum_P * weight_P).unsqueeze(-1))
        if draws:
            share_P = tail_p_P * weight_P / draws
            exp_PV.scatter_add_(-1, drawn_PR, -share_P.unsqueeze(-1).expand_as(drawn_PR))
        grad_PK = slope_PK - exp_PK * (slopes_P / sum_P).unsqueeze(-1)
        exp_PV.scatter_add_(-1, ids_PK, grad_PK * weight_P.unsqueeze(-1))
        return torch.where(kept_PK, kept.term_K, 0.0).sum(-1) + tail.term_K


class Dense(NamedTuple):
    """The teacher's last hidden states, from which its whole distribution is made again.

    Attributes:
        hidden_NE: the states at the positions.
        head_UE: its output embedding.
        student_ids_U: of each of its tokens, the student's that stands for it.
        size: of the student's vocabulary.
        temperature: of the distributions.
        next_N: a token that has all the mass, in place of the states' distribution; else -1.
            None: nowhere.
    """

    hidden_NE: Tensor
    head_UE: Tensor
    student_ids_U: Tensor
    size: int
    temperature: float = 1.0
    next_N: Tensor | None = None

    def to(self, device: torch.device) -> Dense:
        """See `Target`."""
        return self._replace(
            hidden_NE=self.hidden_NE.to(device),
            head_UE=self.head_UE.to(device),
            student_ids_U=self.student_ids_U.to(device),
            next_N=None if self.next_N is None else self.next_N.to(device),
        )

    def chunk(self, which: slice) -> DenseChunk:
        """See `Target`."""
        logits_CU = self.hidden_NE[which].to(self.head_UE.dtype) @ self.head_UE.T
        return DenseChunk(self, logits_CU, None if self.next_N is None else self.next_N[which])


class DenseChunk(NamedTuple):
    """The teacher's logits at a chunk of positions, over its own vocabulary."""

    source: Dense
    logits_CU: Tensor
    next_C: Tensor | None

    def divergence_(
        self, which: slice, logits_PV: Tensor, weight_P: Tensor, divergence: Divergence
    ) -> Tensor:
        """See `Chunk`; every token is a class."""
        theirs_PU = self.logits_CU[which].to(logits_PV.dtype) / self.source.temperature
        p_PV = torch.zeros_like(logits_PV).index_add_(
            -1, self.source.student_ids_U, torch.softmax(theirs_PU, -1)
        )
        if self.next_C is not None:
            next_P = self.next_C[which]
            there_P = next_P >= 0
            p_PV[there_P] = F.one_hot(next_P[there_P], p_PV.shape[-1]).to(p_PV.dtype)
        alone_P1 = p_PV.amax(-1, keepdim=True) >= 1.0
        classes = Classes.of(p_PV, torch.log_softmax(logits_PV, -1))
        part = _parts(classes, divergence, alone_P1)
        slope_PV, slopes_P1 = part.slope_K, part.slope_K.sum(-1, keepdim=True)
        torch.addcmul(slope_PV, classes.q_K, slopes_P1, value=-1.0, out=logits_PV)
        logits_PV.mul_(weight_P.unsqueeze(-1))
        return part.term_K.sum(-1)


def _parts(classes: Classes, divergence: Divergence, alone: Tensor) -> Part:
    """What each class adds; forward KL where one token has all the teacher's mass.

    There, as inside a spelling, the others have none, and a divergence that takes their logarithm
    would be the logarithm of the least number, whatever that is.

    Args:
        alone: whether the position is such a one; as `classes`, or with one column.
    """
    part = divergence.parts(classes)
    if divergence is FORWARD_KL or not bool(alone.any()):
        return part
    plain = FORWARD_KL.parts(classes)
    return Part(
        torch.where(alone, plain.term_K, part.term_K),
        torch.where(alone, plain.slope_K, part.slope_K),
    )


def divergence_of(
    logits_NV: Tensor, target: Target, divergence: Divergence = FORWARD_KL
) -> tuple[Tensor, Tensor]:
    """The divergence of each position in nats, (N,), and its gradient by the logits, (N, V)."""
    grad_NV = logits_NV.clone()
    everything, one_N = slice(None), logits_NV.new_ones(len(logits_NV))
    return target.chunk(everything).divergence_(everything, grad_NV, one_N, divergence), grad_NV


class _ChunkedDivergence(torch.autograd.Function):
    """Weighted sum of divergences from hidden states, with gradients made chunk by chunk.

    The gradients are computed in the forward pass, while a chunk's logits are at hand, so the
    head is multiplied three times a chunk and never again (the scheme of Liger's fused linear
    losses, arXiv 2410.10989, section 3.2).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        target: Target,
        weight_N: Tensor,
        divergence: Divergence,
        temperature: float,
        compute: torch.dtype,
    ) -> Tensor:
        head = head_VD.to(compute)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        learned = ctx.needs_input_grad[1]  # a frozen head has no gradient
        grad_head_VD = torch.zeros_like(head_VD) if learned else None
        total = hidden_ND.new_zeros((), dtype=torch.float64)
        precise = torch.promote_types(torch.float32, hidden_ND.dtype)
        few = max(1, CACHE_BYTES // (precise.itemsize * len(head)))
        for start in range(0, len(hidden_ND), CHUNK_POSITIONS):
            part = slice(start, start + CHUNK_POSITIONS)
            hidden_CD, weight_C = hidden_ND[part].to(compute), weight_N[part].to(precise)
            logits_CV = hidden_CD @ head.T  # and, row by row, their gradient in the same place
            chunk = target.chunk(part)
            for row in range(0, len(logits_CV), few):
                rows = slice(row, row + few)
                exact_PV, weight_P = logits_CV[rows].to(precise), weight_C[rows]
                if temperature != 1.0:
                    exact_PV /= temperature
                    weight_P = weight_P * temperature  # by the square, as by 1 / t in the logits
                loss_P = chunk.divergence_(rows, exact_PV, weight_P, divergence)
                total += (loss_P * weight_P).sum().double() * temperature
                logits_CV[rows] = exact_PV.to(compute)
            grad_hidden_ND[part] = (logits_CV @ head).to(hidden_ND.dtype)
            if grad_head_VD is not None:
                grad_head_VD.addmm_(logits_CV.T.to(head_VD.dtype), hidden_CD.to(head_VD.dtype))
        ctx.save_for_backward(grad_hidden_ND, grad_head_VD)
        return total.to(precise)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        if float(grad) != 1.0:  # a pass over the head's gradient that is mostly not needed
            grad_hidden_ND = grad_hidden_ND * grad.to(grad_hidden_ND.dtype)
            if grad_head_VD is not None:
                grad_head_VD = grad_head_VD * grad.to(grad_head_VD.dtype)
        return grad_hidden_ND, grad_head_VD, None, None, None, None, None


def chunked_divergence(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target: Target,
    weight_N: Tensor,
    *,
    divergence: Divergence = FORWARD_KL,
    temperature: float = 1.0,
    compute: torch.dtype = torch.float32,
) -> Tensor:
    """Weighted sum of divergences over positions, from hidden states and the head's weights.

    Args:
        hidden_ND: the student's last hidden states at the positions.
        head_VD: the output embedding.
        target: the teacher's distributions there, taken at the same temperature.
        weight_N: weight of each position; give 1/positions-of-the-step for a mean that does
            not depend on how the step is split into micro-batches.
        temperature: the student's logits are divided by it, and the sum multiplied by its square,
            so that gradients keep their size (arXiv 1503.02531, section 2).
        compute: type of the matrix products; bf16 where the CPU has the instructions.

    Returns:
        a scalar, nats per token if the weights sum to one and the temperature is 1.
    """
    result: Tensor = _ChunkedDivergence.apply(
        hidden_ND, head_VD, target, weight_N, divergence, temperature, compute
    )
    return result


def one_hot(targets_N: Tensor) -> Sparse:
    """The target of plain text: all mass on the next token, so that forward KL is cross-entropy."""
    return Sparse.of(targets_N.unsqueeze(-1), torch.ones(targets_N.shape[0], 1))
