"""What is made small: divergences between teacher and student, class by class.

Each is a sum over classes of a term that is never negative, and zero only where teacher and
student agree. The textbook forms lack that: p log(p/q) may be negative in a class and only the sum
over all is not. Here the terms carry what cancels over all classes, as q - p does, so that no
rounding, truncation or bucket can make a divergence negative.

A class is a token, or a bucket of tokens: the same formulas hold for both.

Shape suffix: K classes of a position; leading dimensions are positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from overproof.core import methods


class Classes(NamedTuple):
    """Probabilities of the classes and their logarithms: p the teacher's, q the student's."""

    p_K: Tensor
    log_p_K: Tensor
    q_K: Tensor
    log_q_K: Tensor

    @staticmethod
    def of(p_K: Tensor, log_q_K: Tensor) -> Classes:
        """From what is known best of each; no logarithm is less than that of the least number."""
        tiny = torch.finfo(p_K.dtype).tiny
        q_K = log_q_K.exp()
        return Classes(p_K, p_K.clamp_min(tiny).log(), q_K, log_q_K)


class Part(NamedTuple):
    """What each class adds.

    Attributes:
        term_K: to the divergence, in nats; at least 0.
        slope_K: its derivative by log q.
    """

    term_K: Tensor
    slope_K: Tensor


class Divergence(NamedTuple):
    """One of the family.

    Attributes:
        parts: what each class adds.
        linear: whether its slope is q - p, so that tokens drawn from p give it in the mean.
    """

    parts: Callable[[Classes], Part]
    linear: bool = False


def divergence(config: methods.Objective) -> Divergence:
    """The divergence that a recipe names."""
    match config:
        case methods.ForwardKl() | methods.CrossEntropy():  # to all mass on the next token
            return FORWARD_KL
        case methods.ReverseKl():
            return Divergence(_reverse_kl)
        case methods.Jsd(beta=beta):
            return Divergence(lambda classes: _jsd(classes, beta))
        case methods.SkewKl(alpha=alpha):
            return Divergence(lambda classes: _skew_kl(classes, alpha))
        case methods.SkewReverseKl(alpha=alpha):
            return Divergence(lambda classes: _skew_reverse_kl(classes, alpha))
        case methods.AlphaBeta(alpha=alpha, beta=beta):
            return _alpha_beta(alpha, beta)


def _kl_term(a: Tensor, log_a: Tensor, b: Tensor, log_b: Tensor) -> Tensor:
    """A class's share of KL(a||b): a log(a/b) - a + b."""
    return (a * (log_a - log_b) - a + b).clamp_min_(0.0)


def _mixture(classes: Classes, share: float) -> tuple[Tensor, Tensor]:
    """The teacher's share and the student's rest, and its logarithm."""
    m_K = classes.p_K * share + classes.q_K * (1.0 - share)
    return m_K, m_K.clamp_min(torch.finfo(m_K.dtype).tiny).log()


def _forward_kl(c: Classes) -> Part:
    return Part(_kl_term(c.p_K, c.log_p_K, c.q_K, c.log_q_K), c.q_K - c.p_K)


FORWARD_KL = Divergence(_forward_kl, linear=True)


def _reverse_kl(c: Classes) -> Part:
    ratio_K = c.log_q_K - c.log_p_K
    return Part(_kl_term(c.q_K, c.log_q_K, c.p_K, c.log_p_K), c.q_K * ratio_K)


def _jsd(c: Classes, beta: float) -> Part:
    """beta KL(p||m) + (1 - beta) KL(q||m), m = beta p + (1 - beta) q (arXiv 2306.13649, eq. 2)."""
    m_K, log_m_K = _mixture(c, beta)
    theirs_K = _kl_term(c.p_K, c.log_p_K, m_K, log_m_K)
    ours_K = _kl_term(c.q_K, c.log_q_K, m_K, log_m_K)
    slope_K = (1.0 - beta) * c.q_K * (c.log_q_K - log_m_K)
    return Part(beta * theirs_K + (1.0 - beta) * ours_K, slope_K)


def _skew_kl(c: Classes, alpha: float) -> Part:
    """KL(p||m), m = alpha p + (1 - alpha) q (arXiv 2402.03898, section 3.1)."""
    m_K, log_m_K = _mixture(c, alpha)
    ratio_K = c.p_K / m_K.clamp_min(torch.finfo(m_K.dtype).tiny)
    slope_K = (1.0 - alpha) * c.q_K * (1.0 - ratio_K)
    return Part(_kl_term(c.p_K, c.log_p_K, m_K, log_m_K), slope_K)


def _skew_reverse_kl(c: Classes, alpha: float) -> Part:
    """KL(q||m), m = (1 - alpha) p + alpha q (arXiv 2402.03898, section 3.1)."""
    m_K, log_m_K = _mixture(c, 1.0 - alpha)
    ratio_K = c.q_K / m_K.clamp_min(torch.finfo(m_K.dtype).tiny)
    slope_K = c.q_K * (c.log_q_K - log_m_K + alpha * (1.0 - ratio_K))
    return Part(_kl_term(c.q_K, c.log_q_K, m_K, log_m_K), slope_K)


def _alpha_beta(alpha: float, beta: float) -> Divergence:
    """The alpha-beta divergence (doi 10.3390/e13010134, eq. 1 and its limits; arXiv 2505.04560).

    Each term is the gap of Young's inequality between p^alpha and q^beta.
    """

    def both(c: Classes) -> Part:
        total = alpha + beta
        p_K, q_K = (alpha * c.log_p_K).exp(), (beta * c.log_q_K).exp()
        p_all_K, q_all_K = (total * c.log_p_K).exp(), (total * c.log_q_K).exp()
        gap_K = (alpha * p_all_K + beta * q_all_K) / total - p_K * q_K
        return Part((gap_K / (alpha * beta)).clamp_min_(0.0), (q_all_K - p_K * q_K) / alpha)

    def no_beta(c: Classes) -> Part:
        log_p_K, log_q_K = alpha * c.log_p_K, alpha * c.log_q_K
        p_K, q_K = log_p_K.exp(), log_q_K.exp()
        return Part(_kl_term(p_K, log_p_K, q_K, log_q_K) / alpha**2, (q_K - p_K) / alpha)

    def no_alpha(c: Classes) -> Part:
        log_p_K, log_q_K = beta * c.log_p_K, beta * c.log_q_K
        p_K, q_K = log_p_K.exp(), log_q_K.exp()
        ratio_K = c.log_q_K - c.log_p_K
        return Part(_kl_term(q_K, log_q_K, p_K, log_p_K) / beta**2, q_K * ratio_K)

    if not beta:
        return Divergence(no_beta, linear=alpha == 1.0)
    return Divergence(both if alpha else no_alpha)
