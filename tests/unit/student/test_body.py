from __future__ import annotations

import copy

import pytest
import tiny_teacher as tiny
import torch
import training

from overproof.data.pack import pack
from overproof.student import body as module
from overproof.student.body import FusedBody, PlainBody, make_body
from overproof.student.flat import Flat
from overproof.teacher.forward import model_inputs


def flattened(model, dtype: torch.dtype):
    weights, grads = Flat(model, dtype), Flat(model, dtype)
    weights.adopt(model)
    for name, parameter in model.named_parameters():
        parameter.grad = grads.view(name)
    return weights, grads


def both(dtype: torch.dtype):
    """States and gradients of the same batch by our layers and by transformers'."""
    packed = pack(training.HEAD, [one.tokens for one in tiny.examples(12)], training.ROOM)
    found = []
    direction: torch.Tensor | None = None
    for fast in (True, False):
        model = copy.deepcopy(training.student()).to(dtype).train()
        weights, grads = flattened(model, dtype)
        body = make_body(model, weights, grads) if fast else PlainBody(model)
        states = body.states(model_inputs(packed, dtype))
        if direction is None:
            direction = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
        used = torch.from_numpy(packed.segments_RT >= 0)
        (states.float() * direction)[used].sum().backward()
        named = {name: grads.view(name).float() for name in grads.places}
        found.append((body, states.detach()[used].float(), named))
    return found


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 0.05)])
def test_states_and_gradients_are_those_of_transformers(dtype: torch.dtype, bound: float) -> None:
    (ours, states, grads), (_, expected, theirs) = both(dtype)
    assert isinstance(ours, FusedBody)
    assert distance(states, expected) < bound
    assert set(grads) == set(theirs)
    for name, grad in grads.items():
        assert distance(grad, theirs[name]) < bound, name


def test_every_parameter_inside_the_layers_is_overwritten() -> None:
    """A second pass must leave the same gradients, not twice as much."""
    model = training.student().train()
    weights, grads = flattened(model, torch.float32)
    body = make_body(model, weights, grads)
    inputs = model_inputs(
        pack(training.HEAD, [one.tokens for one in tiny.examples(4)], training.ROOM), torch.float32
    )
    body.states(inputs).square().sum().backward()
    once = {name: grads.view(name).clone() for name in body.written}
    assert len(once) == 9 * len(model.model.layers)
    assert all(bool(grad.any()) for grad in once.values())
    body.states(inputs).square().sum().backward()
    assert all(torch.equal(grads.view(name), grad) for name, grad in once.items())


@pytest.mark.parametrize(
    "change", [{"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}]
)
def test_a_model_of_another_make_runs_as_transformers_has_it(change: dict[str, object]) -> None:
    model = training.student()
    for name, value in change.items():
        setattr(model.config, name, value)
    assert not module.fits(model)
    weights, grads = flattened(model, torch.float32)
    assert isinstance(make_body(model, weights, grads), PlainBody)


def test_only_neighbours_of_equal_width_are_joined() -> None:
    flat = Flat(training.student(), torch.float32)
    names = ["model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(flat.joined(names)[: flat.view(names[0]).shape[0]], flat.view(names[0]))
    with pytest.raises(ValueError, match="does not follow"):
        flat.joined(names[::-1])
