from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import torch
import training
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from overproof.core.config import load_recipe
from overproof.core.errors import UsageError
from overproof.core.methods import Hidden, Quantize
from overproof.core.sections import TrainConfig
from overproof.student import hidden
from overproof.student.arms import plain
from overproof.student.examples import TrainSet
from overproof.student.losses import Dense

WIDTH = tiny.model().config.hidden_size


def dense(states: torch.Tensor, next_N: torch.Tensor | None = None) -> Dense:
    return Dense(states, torch.empty(0, states.shape[1]), torch.empty(0).long(), 0, 1.0, next_N)


def sizes(seed: int, positions: int = 7, own: int = 5, theirs: int = 6):
    make = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=make, dtype=torch.float64)  # noqa: E731
    return draw(positions, own), draw(theirs, own), draw(positions, theirs), draw(positions).abs()


@given(st.integers(0, 2**31 - 1))
def test_value_and_gradients_are_those_of_the_definition(seed: int) -> None:
    """In fp64, against the sum written out position by position."""
    states, projection, theirs, weight = sizes(seed)
    next_N = torch.tensor([-1, 4, -1, -1, 2, -1, -1])
    ours = [one.clone().requires_grad_() for one in (states, projection)]
    found = hidden.distance(*ours, dense(theirs, next_N), weight)
    found.backward()
    same = [one.clone().requires_grad_() for one in (states, projection)]
    wanted = sum(
        weight[at]
        * torch.dist(same[1] @ same[0][at], theirs[at]) ** 2
        / torch.linalg.vector_norm(theirs[at]) ** 2
        for at in range(7)
        if next_N[at] < 0
    )
    wanted.backward()
    torch.testing.assert_close(found, wanted)
    for one, other in zip(ours, same, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradients_are_the_values_own_slopes() -> None:
    states, projection, theirs, weight = sizes(3)
    given_both = [one.clone().requires_grad_() for one in (states, projection)]
    assert torch.autograd.gradcheck(
        lambda a, b: hidden.distance(a, b, dense(theirs), weight), given_both
    )


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_it_is_zero_on_equal_states_and_knows_no_unit(seed: int, scale: float) -> None:
    states, _, theirs, weight = sizes(seed, own=6)
    whole = torch.eye(6, dtype=torch.float64)
    assert float(hidden.distance(theirs, whole, dense(theirs), weight)) == 0
    one = hidden.distance(states, whole, dense(theirs), weight)
    other = hidden.distance(states * scale, whole, dense(theirs * scale), weight)
    torch.testing.assert_close(one, other)
    assert float(one) > 0


def test_the_projection_begins_as_the_identity_or_keeps_lengths() -> None:
    model = training.student()
    before = [name for name, _ in model.named_parameters()]
    hidden.attach(model, WIDTH, 0)
    assert [name for name, _ in model.named_parameters()] == [*before, hidden.WEIGHT]
    assert torch.equal(model.get_parameter(hidden.WEIGHT), torch.eye(WIDTH))
    hidden.detach(model)
    assert [name for name, _ in model.named_parameters()] == before
    hidden.attach(model, 2 * WIDTH, 5)
    wide = model.get_parameter(hidden.WEIGHT).detach()
    torch.testing.assert_close(wide.T @ wide, torch.eye(WIDTH), rtol=0, atol=1e-5)
    hidden.attach(model, 2 * WIDTH, 5)
    assert torch.equal(wide, model.get_parameter(hidden.WEIGHT))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hidden") / "examples"
    training.states(folder)
    return folder


def apart(model: nn.Module, data: TrainSet) -> float:
    """Mean distance of the model's last states from the teacher's, with no projection."""
    found, start = [], 0
    for size, text in zip(data.lengths, data.examples, strict=True):
        source = np.arange(start, start + size)
        start += size
        tokens = torch.tensor([[*data.prefix.tolist(), *text]])
        with torch.inference_mode():
            states = model.model(tokens).last_hidden_state[0, len(data.prefix) :]
        weight = torch.from_numpy(data.weight_N[source])
        found.append(hidden.distance(states, torch.eye(WIDTH), data.targets.at(source), weight))
    return float(sum(found) / data.weight_N.sum())


def test_training_draws_the_states_together(examples: Path) -> None:
    data = TrainSet.map(examples)
    found = {}
    for name, section in {"alone": None, "hidden": Hidden(weight=3.0)}.items():
        model = training.student()
        quantize = Quantize(format="q8_0") if section else None
        if section:
            hidden.attach(model, WIDTH, 3)
        config = training.config(steps=25, hidden=section, quantize=quantize)
        worker = training.alone(model, examples, config)
        if section:
            projection = model.get_parameter(hidden.WEIGHT)
            assert not torch.equal(projection, torch.eye(WIDTH))  # learned, and never rounded:
            assert torch.equal(worker.shared.weights.view(hidden.WEIGHT), projection)
            hidden.detach(model)
        found[name] = apart(model, data)
    assert found["hidden"] < 0.8 * found["alone"]


def test_the_control_arm_has_no_hidden_states() -> None:
    assert plain(TrainConfig(steps=4, hidden=Hidden())).hidden is None


def test_hidden_states_that_nobody_keeps_are_refused() -> None:
    recipe = Path(__file__).parents[3] / "recipes/support.yaml"
    with pytest.raises(UsageError) as caught:
        load_recipe(recipe, ["train.hidden={weight: 1}"])
    assert "take signals.kind `exact`, got `top-k`" in caught.value.render()
    load_recipe(recipe, ["train.hidden={weight: 1}", "signals={kind: exact}"])
