"""Divergences between teacher and student, in a form that never holds (tokens, vocabulary).

Shape suffixes: N positions, C positions of one chunk, D model width, V student vocabulary,
K kept teacher tokens a position, R tokens drawn from the teacher's tail.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_POSITIONS = 512  # of one matrix product; its logits are held in the type of the product
CACHE_BYTES = 1 << 20  # of fp32 logits worked on at a time: seven passes, all in the L2 cache


def bucket_kl(
    logits_CV: Tensor, ids_CK: Tensor, probs_CK: Tensor, drawn_CR: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Forward KL on K + 1 classes: the kept tokens, and one bucket for all others.

    The tail bucket makes the truncated sum a KL divergence again: without it the sum can be
    negative and pushes the student's mass out of the kept tokens (docs/papers.md, "tail bucket").
    Each class adds p log(p/q) - p + q, which is never negative; the p and q sum to one, so the
    added terms cancel over the classes. With K = V the bucket is empty and this is the dense KL.

    With tokens drawn from the tail the gradient is that of the KL over the whole vocabulary, in
    the mean over the draws (docs/adr/0014); the value stays that of the K + 1 classes.

    Args:
        logits_CV: the student's logits, fp32 or fp64.
        ids_CK: kept token ids. Those with a probability above 0 are distinct within a row;
            entries of probability 0 are filler and belong to the bucket.
        probs_CK: the teacher's probabilities of them; what is missing to 1 is the tail.
        drawn_CR: tokens drawn from the teacher's tail by their probability; each stands for an
            equal share of it. None, or R = 0: the student's tail is scaled as a whole.

    Returns:
        the divergence of each position in nats, shape (C,), and its gradient by logits_CV.
    """
    grad_CV = logits_CV.clone()
    one_C = logits_CV.new_ones(len(logits_CV))
    drawn_CR = ids_CK[:, :0] if drawn_CR is None else drawn_CR
    return _bucket_kl_(grad_CV, ids_CK, probs_CK, one_C, drawn_CR), grad_CV


def _bucket_kl_(
    logits_CV: Tensor,
    ids_CK: Tensor,
    probs_CK: Tensor,
    weight_C: Tensor,
    drawn_CR: Tensor,
) -> Tensor:
    """`bucket_kl` in place: the logits become their gradient, times the position's weight.

    Five passes over (C, V), nothing of that size made (docs/log.md has the measurement).
    """
    largest_C1 = logits_CV.amax(-1, keepdim=True)
    own_CK = logits_CV.gather(-1, ids_CK) - largest_C1
    exp_CV = logits_CV.sub_(largest_C1).exp_()
    kept_CK = probs_CK > 0
    exp_CK = torch.where(kept_CK, exp_CV.gather(-1, ids_CK), 0.0)
    # The tail's mass is summed over the other tokens: 1 - sum(kept) would lose all its digits.
    exp_CV.scatter_add_(-1, ids_CK, -exp_CK)
    tail_C = exp_CV.sum(-1)
    sum_C = tail_C + exp_CK.sum(-1)
    tail_p_C = (1.0 - probs_CK.sum(-1)).clamp_min(0.0)
    tail_q_C = (tail_C / sum_C).clamp_min(torch.finfo(exp_CV.dtype).tiny)
    log_q_CK = own_CK - sum_C.log().unsqueeze(-1)
    loss_C = torch.where(kept_CK, _class_term(probs_CK, log_q_CK), 0.0).sum(-1)
    loss_C = loss_C + _class_term(tail_p_C, tail_q_C.log())
    # d/dz: q minus p on the kept tokens; on the others q minus their share of the tail's p, which
    # is a drawn token's where there are any, and else in proportion to q.
    if drawn_CR.shape[-1] == 0:
        exp_CV.mul_(((1.0 - tail_p_C / tail_q_C) / sum_C * weight_C).unsqueeze(-1))
    else:
        exp_CV.mul_((weight_C / sum_C).unsqueeze(-1))
        share_C = tail_p_C * weight_C / drawn_CR.shape[-1]
        exp_CV.scatter_add_(-1, drawn_CR, -share_C.unsqueeze(-1).expand_as(drawn_CR))
    own_grad_CK = (exp_CK / sum_C.unsqueeze(-1) - probs_CK) * weight_C.unsqueeze(-1)
    exp_CV.scatter_add_(-1, ids_CK, own_grad_CK)
    return loss_C


def _class_term(p: Tensor, log_q: Tensor) -> Tensor:
    """One class's share, p log(p/q) - p + q: at least 0, and q where p is 0."""
    return torch.xlogy(p, p) - p * log_q - p + log_q.exp()


class _ChunkedBucketKl(torch.autograd.Function):
    """Mean weighted divergence from hidden states, with gradients made chunk by chunk.

    The gradients are computed in the forward pass, while a chunk's logits are at hand, so the
    head is multiplied three times a chunk and never again (the scheme of Liger's fused linear
    losses, arXiv 2410.10989, section 3.2).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        ids_NK: Tensor,
        probs_NK: Tensor,
        weight_N: Tensor,
        drawn_NR: Tensor,
        compute: torch.dtype,
    ) -> Tensor:
        head = head_VD.to(compute)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_head_VD = torch.zeros_like(head_VD)
        total = hidden_ND.new_zeros((), dtype=torch.float64)
        precise = torch.promote_types(torch.float32, hidden_ND.dtype)
        few = max(1, CACHE_BYTES // (precise.itemsize * len(head)))
        for start in range(0, hidden_ND.shape[0], CHUNK_POSITIONS):
            part = slice(start, start + CHUNK_POSITIONS)
            hidden_CD = hidden_ND[part].to(compute)
            logits_CV = hidden_CD @ head.T  # and, row by row, their gradient in the same place
            rows = zip(
                logits_CV.split(few),
                ids_NK[part].split(few),
                probs_NK[part].to(precise).split(few),
                weight_N[part].to(precise).split(few),
                drawn_NR[part].split(few),
                strict=True,
            )
            for logits, ids, probs, weight, drawn in rows:
                exact_CV = logits.to(precise)
                total += (_bucket_kl_(exact_CV, ids, probs, weight, drawn) * weight).sum().double()
                logits.copy_(exact_CV)
            grad_hidden_ND[part] = (logits_CV @ head).to(hidden_ND.dtype)
            grad_head_VD.addmm_(logits_CV.T.to(head_VD.dtype), hidden_CD.to(head_VD.dtype))
        ctx.save_for_backward(grad_hidden_ND, grad_head_VD)
        return total.to(precise)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        if float(grad) != 1.0:  # a pass over the head's gradient that is mostly not needed
            grad_hidden_ND = grad_hidden_ND * grad.to(grad_hidden_ND.dtype)
            grad_head_VD = grad_head_VD * grad.to(grad_head_VD.dtype)
        return (
            grad_hidden_ND,
            grad_head_VD,
            None,
            None,
            None,
            None,
            None,
        )


def chunked_bucket_kl(
    hidden_ND: Tensor,
    head_VD: Tensor,
    ids_NK: Tensor,
    probs_NK: Tensor,
    weight_N: Tensor,
    drawn_NR: Tensor | None = None,
    *,
    compute: torch.dtype = torch.float32,
) -> Tensor:
    """Weighted sum of `bucket_kl` over positions, from hidden states and the head's weights.

    Args:
        hidden_ND: the student's last hidden states at the positions.
        head_VD: the output embedding.
        ids_NK, probs_NK, drawn_NR: the teacher's kept tokens and probabilities, and those drawn
            from its tail, see `bucket_kl`.
        weight_N: weight of each position; give 1/positions-of-the-step for a mean that does
            not depend on how the step is split into micro-batches.
        compute: type of the matrix products; bf16 where the CPU has the instructions.

    Returns:
        a scalar, nats per token if the weights sum to one.
    """
    drawn_NR = ids_NK[:, :0] if drawn_NR is None else drawn_NR
    result: Tensor = _ChunkedBucketKl.apply(
        hidden_ND, head_VD, ids_NK, probs_NK, weight_N, drawn_NR, compute
    )
    return result


def one_hot(targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """The signal of plain text: all mass on the next token, so that KL is cross-entropy.

    Returns:
        ids (N, 1) and probabilities (N, 1), as `bucket_kl` takes them.
    """
    return targets_N.unsqueeze(-1), torch.ones(targets_N.shape[0], 1)
