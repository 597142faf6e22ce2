"""What must hold of the losses for any distributions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overproof.student import losses
from overproof.student.losses import Sparse, chunked_divergence, divergence_of, one_hot
from overproof.teacher.kept.draw import draw

SEEDS = st.integers(0, 2**31 - 1)
SCALES = st.sampled_from([0.0, 0.1, 1.0, 8.0, 60.0])


def case(seed: int, scale: float, rows: int, tokens: int, kept: int):
    """Logits, ids, probabilities: a teacher's own top tokens, fp64."""
    make = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tokens, dtype=torch.float64, generator=make) * scale
    teacher = torch.randn(rows, tokens, dtype=torch.float64, generator=make) * scale
    probs, ids = teacher.softmax(-1).topk(kept, -1)
    return logits, teacher, ids, probs


@settings(max_examples=60, deadline=None)
@given(SEEDS, SCALES, st.integers(2, 40), st.data())
def test_never_negative(seed: int, scale: float, tokens: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, tokens))
    logits, _, ids, probs = case(seed, scale, 5, tokens, kept)
    for dtype in (torch.float32, torch.float64):
        loss, grad = divergence_of(logits.to(dtype), Sparse.of(ids, probs.to(dtype)))
        assert (loss >= -1e-6 if dtype == torch.float32 else loss >= -1e-12).all()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(grad).all()


@settings(max_examples=40, deadline=None)
@given(SEEDS, SCALES, st.integers(2, 40), st.data())
def test_zero_on_equal_inputs(seed: int, scale: float, tokens: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, tokens))
    logits, _, _, _ = case(seed, scale, 5, tokens, kept)
    probs, ids = logits.softmax(-1).topk(kept, -1)
    loss, grad = divergence_of(logits, Sparse.of(ids, probs))
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-9)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0.1, 1.0, 8.0]), st.integers(2, 40))
def test_dense_when_every_token_is_kept(seed: int, scale: float, tokens: int) -> None:
    logits, teacher, ids, probs = case(seed, scale, 4, tokens, tokens)
    logits.requires_grad_(True)
    log_p, log_q = teacher.log_softmax(-1), logits.log_softmax(-1)
    dense = (log_p.exp() * (log_p - log_q)).sum(-1)
    wanted = torch.autograd.grad(dense.sum(), logits)[0]
    loss, grad = divergence_of(logits.detach(), Sparse.of(ids, probs))
    torch.testing.assert_close(loss, dense.detach(), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(grad, wanted, rtol=1e-6, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([0.1, 1.0, 8.0]), st.integers(3, 40), st.data())
def test_the_gradient_is_that_of_the_value(
    seed: int, scale: float, tokens: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, tokens - 1))
    logits, _, ids, probs = case(seed, scale, 4, tokens, kept)
    logits.requires_grad_(True)
    q = logits.softmax(-1)
    others = torch.ones_like(q).scatter(-1, ids, 0.0)
    # The kept probabilities of a nearly certain teacher may sum to a hair over one.
    tail_p, tail_q = (1 - probs.sum(-1)).clamp_min(0.0), (q * others).sum(-1)
    kept_terms = (torch.xlogy(probs, probs) - probs * q.gather(-1, ids).log()).sum(-1)
    value = kept_terms + torch.xlogy(tail_p, tail_p) - tail_p * tail_q.log()
    wanted = torch.autograd.grad(value.sum(), logits)[0]
    loss, grad = divergence_of(logits.detach(), Sparse.of(ids, probs))
    torch.testing.assert_close(loss, value.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(grad, wanted, rtol=1e-6, atol=1e-9)


def test_a_sum_over_one_by_rounding_leaves_no_tail() -> None:
    logits, _, ids, probs = case(0, 3.0, 4, 9, 8)
    probs /= probs.sum(-1, keepdim=True)
    loss, grad = divergence_of(logits, Sparse.of(ids, probs))
    more_loss, more_grad = divergence_of(logits, Sparse.of(ids, probs * (1 + 1e-15)))
    assert (probs.sum(-1) * (1 + 1e-15) > 1).all()
    torch.testing.assert_close(more_loss, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(more_grad, grad, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([0.1, 1.0, 3.0]), st.integers(3, 80), st.integers(1, 9), st.data())
def test_drawn_tokens_give_the_gradient_of_the_whole_divergence_in_the_mean(
    seed: int, scale: float, tokens: int, count: int, data: st.DataObject
) -> None:
    """Over evenly spread offsets; the value is that of the classes, whatever is drawn."""
    kept = data.draw(st.integers(1, tokens - 1))
    logits, teacher, ids, probs = case(seed, scale, 1, tokens, kept)
    p, q = teacher.softmax(-1), logits.softmax(-1)
    offsets = (torch.arange(1000) + 0.5) / 1000
    tail = p.scatter(-1, ids, 0.0).float().expand(1000, -1)
    many = [tensor.expand(1000, -1) for tensor in (logits, ids, probs)]
    loss, grad = divergence_of(many[0], Sparse.of(*many[1:], draw(tail, offsets, count)))
    torch.testing.assert_close(loss, divergence_of(many[0], Sparse.of(*many[1:]))[0])
    torch.testing.assert_close(grad.sum(-1), torch.zeros(1000).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(grad.mean(0), (q - p)[0], rtol=0, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(8, 60), st.integers(2, 12), st.integers(1, 6))
def test_drawn_tokens_may_stand_for_a_kept_one(seed: int, tokens: int, own: int, kept: int) -> None:
    """A student that has fewer tokens: several of the teacher's, kept and drawn, are one of its."""
    _, teacher, ids, probs = case(seed, 1.0, 1, tokens, kept)
    make = torch.Generator().manual_seed(seed)
    student_ids = torch.randint(own, (tokens,), generator=make)
    logits = torch.randn(1, own, dtype=torch.float64, generator=make)
    p = torch.zeros(1, own).double().index_add_(1, student_ids, teacher.softmax(-1))
    mass = torch.zeros(1, own).double().scatter_add_(1, student_ids[ids], probs)
    mine, places = mass.topk(min(kept, own), -1)
    offsets = (torch.arange(1000) + 0.5) / 1000
    tail = teacher.softmax(-1).scatter(-1, ids, 0.0).float().expand(1000, -1)
    drawn = student_ids[draw(tail, offsets, 5)]
    many = [one.expand(1000, -1) for one in (logits, places, mine)]
    _, grad = divergence_of(many[0], Sparse(many[1], many[2], drawn))
    torch.testing.assert_close(grad.mean(0), (logits.softmax(-1) - p)[0], rtol=0, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(2, 30))
def test_a_distribution_on_one_token_is_cross_entropy(seed: int, tokens: int) -> None:
    logits, _, _, _ = case(seed, 3.0, 6, tokens, 1)
    targets = torch.randint(tokens, (6,), generator=torch.Generator().manual_seed(seed))
    logits.requires_grad_(True)
    dense = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    wanted = torch.autograd.grad(dense.sum(), logits)[0]
    loss, grad = divergence_of(logits.detach(), one_hot(targets))
    torch.testing.assert_close(loss, dense.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(grad, wanted, rtol=1e-6, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(4, 30), st.integers(1, 12))
def test_filler_of_probability_0_changes_nothing(seed: int, tokens: int, filler: int) -> None:
    """Filler may repeat a kept token, another filler, or name any token."""
    logits, _, ids, probs = case(seed, 2.0, 5, tokens, 2)
    more = torch.randint(tokens, (5, filler), generator=torch.Generator().manual_seed(seed))
    loss, grad = divergence_of(logits, Sparse.of(ids, probs))
    wide = torch.cat([ids, more], -1), torch.cat([probs, torch.zeros(5, filler)], -1).double()
    loss_wide, grad_wide = divergence_of(logits, Sparse.of(*wide))
    torch.testing.assert_close(loss_wide, loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad_wide, grad, rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 23), st.integers(1, 7), st.integers(0, 23))
def test_chunks_and_micro_batches_change_nothing(
    seed: int, positions: int, chunk: int, split: int
) -> None:
    make = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, 6, dtype=torch.float64, generator=make)
    head = torch.randn(11, 6, dtype=torch.float64, generator=make)
    _, _, ids, probs = case(seed, 2.0, positions, 11, 3)
    drawn = torch.randint(11, (positions, 4), generator=make)
    weight = torch.rand(positions, dtype=torch.float64, generator=make)
    weight /= weight.sum()

    def run(parts: list[slice], size: int) -> list[torch.Tensor]:
        mine, own = hidden.clone().requires_grad_(True), head.clone().requires_grad_(True)
        before, losses.CHUNK_POSITIONS = losses.CHUNK_POSITIONS, size
        try:
            total = torch.zeros((), dtype=torch.float64)
            for part in parts:
                target = Sparse(ids[part], probs[part], drawn[part])
                loss = chunked_divergence(
                    mine[part], own, target, weight[part], compute=torch.float64
                )
                loss.backward()
                total += loss.detach()
        finally:
            losses.CHUNK_POSITIONS = before
        return [total, mine.grad, own.grad]

    whole = run([slice(None)], 512)
    at = min(split, positions)
    pieces = [part for part in (slice(0, at), slice(at, positions)) if part.stop > part.start]
    for other in (run([slice(None)], chunk), run(pieces, 512), run(pieces, chunk)):
        torch.testing.assert_close(other, whole, rtol=1e-9, atol=1e-12)
