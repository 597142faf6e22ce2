"""Models where worker processes see them."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_teacher as tiny
import torch

from overproof.core.device import Processor
from overproof.core.workers import spread
from overproof.teacher.forward import LINE_BYTES, mixed, share

MANY = 40  # layers with more tensors than the files that a worker is started with


def values(model: Any) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def blocks(model: Any) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in values(model)}


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Processor("a processor", frozenset({"amx_bf16"}))
    monkeypatch.setattr("overproof.core.device.processor", lambda: fast)


def test_a_shared_model_is_the_same_in_one_block_a_type(bf16: None) -> None:
    model, wanted = mixed(tiny.model()), mixed(tiny.model())
    share(model)
    assert len(blocks(model)) == 2
    assert all(value.is_shared() for value in values(model))
    assert all(value.data_ptr() % LINE_BYTES == 0 for value in values(model))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    got = model.state_dict()
    assert all(torch.equal(got[name], value) for name, value in wanted.state_dict().items())


def test_what_is_shared_stays_where_it_is(bf16: None) -> None:
    model = tiny.model()
    share(model)
    places = [value.data_ptr() for value in values(model)]
    copy = mixed(model)
    share(copy)
    share(model)
    assert [value.data_ptr() for value in values(model)] == places
    assert copy.model.embed_tokens.weight is model.model.embed_tokens.weight


def double(model: Any, results: Any) -> None:
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(2)
    results.put(len(values(model)))


def test_a_worker_sees_the_memory_of_a_model_of_many_tensors() -> None:
    model, wanted = tiny.model(layers=MANY), tiny.model(layers=MANY)
    share(model)
    (count,) = spread(double, [(model,)], 1, name="a worker", hint="none")
    assert count == len(values(model)) > 256
    for got, value in zip(model.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(got, 2 * value)
