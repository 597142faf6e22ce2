"""What must hold of every divergence, against its textbook form over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overproof.core import methods
from overproof.student import losses
from overproof.student.divergences import divergence
from overproof.student.losses import Dense, Sparse, chunked_divergence, divergence_of

SEEDS = st.integers(0, 2**31 - 1)
SCALES = st.sampled_from([0.1, 1.0, 8.0])


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a.log() - b.log())).sum(-1)


def jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def alpha_beta(p: Tensor, q: Tensor, a: float, b: float) -> Tensor:
    parts = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    return -parts.sum(-1) / (a * b)


FAMILY: dict[str, tuple[methods.Divergence, Callable[[Tensor, Tensor], Tensor]]] = {
    "forward-kl": (methods.ForwardKl(), kl),
    "reverse-kl": (methods.ReverseKl(kind="reverse-kl"), lambda p, q: kl(q, p)),
    "jsd-0.5": (methods.Jsd(kind="jsd"), lambda p, q: jsd(p, q, 0.5)),
    "jsd-0.9": (methods.Jsd(kind="jsd", beta=0.9), lambda p, q: jsd(p, q, 0.9)),
    "skew-kl": (
        methods.SkewKl(kind="skew-kl", alpha=0.1),
        lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    ),
    "skew-reverse-kl": (
        methods.SkewReverseKl(kind="skew-reverse-kl", alpha=0.3),
        lambda p, q: kl(q, 0.7 * p + 0.3 * q),
    ),
    "alpha-beta": (
        methods.AlphaBeta(kind="alpha-beta", alpha=0.2, beta=0.7),
        lambda p, q: alpha_beta(p, q, 0.2, 0.7),
    ),
    "hellinger": (
        methods.AlphaBeta(kind="alpha-beta", alpha=0.5, beta=0.5),
        lambda p, q: 2 * (p.sqrt() - q.sqrt()).square().sum(-1),
    ),
    "squares": (
        methods.AlphaBeta(kind="alpha-beta", alpha=1.0, beta=1.0),
        lambda p, q: (p - q).square().sum(-1) / 2,
    ),
    "alpha-beta-1-0": (methods.AlphaBeta(kind="alpha-beta", alpha=1.0, beta=0.0), kl),
    "alpha-beta-0-1": (
        methods.AlphaBeta(kind="alpha-beta", alpha=0.0, beta=1.0),
        lambda p, q: kl(q, p),
    ),
    "alpha-beta-0.5-0": (
        methods.AlphaBeta(kind="alpha-beta", alpha=0.5, beta=0.0),
        lambda p, q: 4 * (0.5 * p**0.5 * (p / q).log() - p**0.5 + q**0.5).sum(-1),
    ),
    "alpha-beta-0-2": (
        methods.AlphaBeta(kind="alpha-beta", alpha=0.0, beta=2.0),
        lambda p, q: (2 * q**2 * (q / p).log() - q**2 + p**2).sum(-1) / 4,
    ),
}
every = pytest.mark.parametrize("name", FAMILY)


def case(seed: int, scale: float, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Logits of a student and of a teacher, fp64."""
    make = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, tokens, dtype=torch.float64, generator=make) * scale
    return student, torch.randn(rows, tokens, dtype=torch.float64, generator=make) * scale


def truncated(
    seed: int, scale: float, data: st.DataObject
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of both, and any number of the teacher's likeliest tokens, all of them too."""
    tokens = data.draw(st.integers(2, 40))
    kept = data.draw(st.integers(1, tokens))
    student, teacher = case(seed, scale, 5, tokens)
    probs, ids = teacher.softmax(-1).topk(kept, -1)
    return student, teacher, ids, probs


def classes(logits: Tensor, ids: Tensor) -> Tensor:
    """Probabilities of the kept tokens, and of all others together if there are any."""
    probs = logits.softmax(-1)
    others = torch.ones_like(probs).scatter(-1, ids, 0.0)
    kept = probs.gather(-1, ids)
    return torch.cat([kept, (probs * others).sum(-1, keepdim=True)], -1)


@every
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, scale=SCALES, tokens=st.integers(2, 40))
def test_value_and_gradient_are_the_textbooks_over_the_whole_vocabulary(
    name: str, seed: int, scale: float, tokens: int
) -> None:
    config, textbook = FAMILY[name]
    student, teacher = case(seed, scale, 4, tokens)
    logits = student.clone().requires_grad_(True)
    p = teacher.softmax(-1)
    wanted = textbook(p, logits.softmax(-1))
    slope = torch.autograd.grad(wanted.sum(), logits)[0]
    sparse = Sparse.of(torch.arange(tokens).expand(4, -1), p)
    dense = Dense(teacher, torch.eye(tokens).double(), torch.arange(tokens), tokens)
    for target in (sparse, dense):
        loss, grad = divergence_of(student, target, divergence(config))
        torch.testing.assert_close(loss, wanted.detach(), rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(grad, slope, rtol=1e-6, atol=1e-12)


@every
def test_in_single_precision_it_is_the_same_to_a_millionth(name: str) -> None:
    """Of the mean over positions and of the gradient's norm, as a step of training takes them."""
    config, textbook = FAMILY[name]
    student, teacher = case(1, 2.0, 64, 500)
    logits = student.clone().requires_grad_(True)
    wanted = textbook(teacher.softmax(-1), logits.softmax(-1)).mean()
    slope = torch.autograd.grad(wanted, logits)[0]
    identity = torch.eye(500)
    mine = student.float().requires_grad_(True)
    target = Dense(teacher.float(), identity, torch.arange(500), 500)
    loss = chunked_divergence(
        mine, identity, target, torch.full((64,), 1 / 64), divergence=divergence(config)
    )
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert float((mine.grad.double() - slope).norm() / slope.norm()) < 1e-6


@every
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, scale=st.sampled_from([0.0, 0.1, 1.0, 8.0, 60.0]), data=st.data())
def test_no_rounding_and_no_truncation_makes_it_negative(
    name: str, seed: int, scale: float, data: st.DataObject
) -> None:
    student, teacher, ids, probs = truncated(seed, scale, data)
    nearly = teacher + 1e-7 * student
    for logits in (student, teacher, nearly):
        for dtype in (torch.float32, torch.float64):
            target = Sparse.of(ids, probs.to(dtype))
            loss, grad = divergence_of(logits.to(dtype), target, divergence(FAMILY[name][0]))
            assert (loss >= 0).all()
            assert torch.isfinite(loss).all()
            assert torch.isfinite(grad).all()


@every
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, scale=SCALES, data=st.data())
def test_it_is_zero_where_student_and_teacher_agree(
    name: str, seed: int, scale: float, data: st.DataObject
) -> None:
    """As far as is known: the bucket's mass is a difference from one, right to 2e-16, and the
    alpha-beta forms take its square root."""
    _, teacher, ids, probs = truncated(seed, scale, data)
    loss, grad = divergence_of(teacher, Sparse.of(ids, probs), divergence(FAMILY[name][0]))
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-7)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-7)


@every
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, scale=st.sampled_from([0.1, 1.0, 4.0]), data=st.data())
def test_truncated_it_is_the_textbooks_on_the_kept_tokens_and_one_bucket(
    name: str, seed: int, scale: float, data: st.DataObject
) -> None:
    config, textbook = FAMILY[name]
    tokens = data.draw(st.integers(3, 40))
    kept = data.draw(st.integers(1, tokens - 1))
    student, teacher = case(seed, scale, 4, tokens)
    probs, ids = teacher.softmax(-1).topk(kept, -1)
    logits = student.clone().requires_grad_(True)
    wanted = textbook(classes(teacher, ids), classes(logits, ids))
    slope = torch.autograd.grad(wanted.sum(), logits)[0]
    loss, grad = divergence_of(student, Sparse.of(ids, probs), divergence(config))
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(grad, slope, rtol=1e-6, atol=1e-9)


@every
@settings(max_examples=10, deadline=None)
@given(
    seed=SEEDS,
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    cut=st.integers(0, 9),
    chunk=st.integers(1, 9),
)
def test_temperature_and_split_from_a_smaller_vocabulary(
    name: str, seed: int, temperature: float, cut: int, chunk: int
) -> None:
    """From the teacher's hidden states, several of its tokens being one of the student's."""
    config, textbook = FAMILY[name]
    make = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=make)

    theirs, their_head, ours, our_head = normal(9, 5), normal(14, 5), normal(9, 4), normal(8, 4)
    student_ids = torch.randint(8, (14,), generator=make)
    student_ids[:8] = torch.arange(8)  # a token that nothing stands for has no probability at all
    weight = torch.rand(9, dtype=torch.float64, generator=make)
    target = Dense(theirs, their_head, student_ids, 8, temperature)

    hidden, head = ours.clone().requires_grad_(True), our_head.clone().requires_grad_(True)
    p = (theirs @ their_head.T / temperature).softmax(-1)
    p = torch.zeros(9, 8).double().index_add_(1, student_ids, p)
    q = (hidden @ head.T / temperature).softmax(-1)
    wanted = temperature**2 * (weight * textbook(p, q)).sum()
    wanted.backward()

    mine, own = ours.clone().requires_grad_(True), our_head.clone().requires_grad_(True)
    total = torch.zeros((), dtype=torch.float64)
    before, losses.CHUNK_POSITIONS = losses.CHUNK_POSITIONS, chunk
    try:
        for part in (slice(0, cut), slice(cut, 9)):
            loss = chunked_divergence(
                mine[part],
                own,
                target._replace(hidden_NE=theirs[part]),
                weight[part],
                divergence=divergence(config),
                temperature=temperature,
                compute=torch.float64,
            )
            loss.backward()
            total += loss.detach()
    finally:
        losses.CHUNK_POSITIONS = before
    torch.testing.assert_close(total, wanted.detach(), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(mine.grad, hidden.grad, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(own.grad, head.grad, rtol=1e-6, atol=1e-12)


def test_drawn_tokens_are_used_by_forward_kl_alone() -> None:
    student, teacher = case(3, 1.0, 6, 20)
    probs, ids = teacher.softmax(-1).topk(4, -1)
    drawn = teacher.argsort(-1)[:, :3]
    for name, (config, _) in FAMILY.items():
        with_draws = divergence_of(student, Sparse(ids, probs, drawn), divergence(config))
        without = divergence_of(student, Sparse.of(ids, probs), divergence(config))
        torch.testing.assert_close(with_draws[0], without[0])
        same = torch.allclose(with_draws[1], without[1])
        assert same == (name not in {"forward-kl", "alpha-beta-1-0"})


@every
def test_where_one_token_has_all_the_mass_it_is_cross_entropy(name: str) -> None:
    """Inside a spelling; the logarithm of nothing would be whatever the least number is."""
    student, _ = case(5, 1.0, 6, 20)
    targets = torch.arange(6)
    wanted = torch.nn.functional.cross_entropy(student, targets, reduction="none")
    nothing = torch.zeros(6, 4).double()
    head = torch.zeros(20, 4).double()
    for target in (
        losses.one_hot(targets),
        Dense(nothing, head, torch.arange(20), 20, next_N=targets),
    ):
        loss, grad = divergence_of(student, target, divergence(FAMILY[name][0]))
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-9)
        ones = torch.nn.functional.one_hot(targets, 20)
        torch.testing.assert_close(grad, student.softmax(-1) - ones, rtol=1e-6, atol=1e-9)
