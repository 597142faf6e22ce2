from __future__ import annotations

import math

import torch
from torch.autograd import gradcheck

from overproof.student.losses import (
    CHUNK_POSITIONS,
    Sparse,
    chunked_divergence,
    divergence_of,
    one_hot,
)


def test_a_value_worked_out_by_hand() -> None:
    """Teacher: 1/2 and 1/4 kept, 1/4 tail. Student: uniform over 4, so 1/4, 1/4 and 1/2."""
    loss, grad = divergence_of(
        torch.zeros(1, 4), Sparse.of(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.25]]))
    )
    wanted = 0.5 * math.log(2) + 0.25 * math.log(1) + 0.25 * math.log(0.5)
    torch.testing.assert_close(loss, torch.tensor([wanted]))
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.125, -0.25, 0.125]]))


def test_a_student_that_rules_out_the_teachers_token_pays_for_it_finitely() -> None:
    logits = torch.tensor([[0.0, -500.0, -500.0]])
    loss, grad = divergence_of(logits, Sparse.of(torch.tensor([[1]]), torch.tensor([[0.9]])))
    assert 300 < float(loss) < 600
    assert torch.isfinite(grad).all()


def test_the_gradient_of_the_chunked_loss_is_autograds() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    head = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    probs, ids = torch.randn(7, 9, dtype=torch.float64).softmax(-1).topk(3, -1)
    weight = torch.rand(7, dtype=torch.float64)
    assert gradcheck(
        lambda h, w: chunked_divergence(h, w, Sparse.of(ids, probs), weight, compute=torch.float64),
        (hidden, head),
    )


def test_more_positions_than_a_chunk_in_fp32_equal_one_product() -> None:
    torch.manual_seed(1)
    count = CHUNK_POSITIONS + 37
    hidden, head = torch.randn(count, 8), torch.randn(20, 8)
    probs, ids = torch.randn(count, 20).softmax(-1).topk(4, -1)
    weight = torch.full((count,), 1.0 / count)
    mine, own = hidden.clone().requires_grad_(True), head.clone().requires_grad_(True)
    loss = chunked_divergence(mine, own, Sparse.of(ids, probs), weight)
    (3 * loss).backward()
    value, grad = divergence_of(hidden @ head.T, Sparse.of(ids, probs))
    torch.testing.assert_close(loss.detach(), value.mean())
    torch.testing.assert_close(mine.grad, 3 * grad @ head / count)
    torch.testing.assert_close(own.grad, 3 * grad.T @ hidden / count)


def test_bf16_products_stay_near_fp32() -> None:
    torch.manual_seed(2)
    hidden, head = torch.randn(64, 32), torch.randn(50, 32) * 0.3
    probs, ids = torch.randn(64, 50).softmax(-1).topk(8, -1)
    weight = torch.full((64,), 1 / 64)
    exact = chunked_divergence(hidden, head, Sparse.of(ids, probs), weight)
    rough = chunked_divergence(hidden, head, Sparse.of(ids, probs), weight, compute=torch.bfloat16)
    assert abs(float(rough - exact)) < 0.01 * float(exact)


def test_no_position_is_no_loss() -> None:
    empty = torch.zeros(0, 4, requires_grad=True)
    head = torch.zeros(5, 4, requires_grad=True)
    nothing = Sparse.of(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, 2))
    loss = chunked_divergence(empty, head, nothing, torch.zeros(0))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not head.grad.any()


def test_one_hot_puts_all_mass_on_the_target() -> None:
    ids, probs, _ = one_hot(torch.tensor([3, 1]))
    assert ids.tolist() == [[3], [1]]
    assert probs.tolist() == [[1.0], [1.0]]
