from __future__ import annotations

import pytest
import tiny_teacher as tiny

from overproof.core.errors import StageError
from overproof.core.sections import TrainConfig
from overproof.student.optimizer import clip_factor, optimizers, rate, set_rate


def config(**changes: object) -> TrainConfig:
    base = {"steps": 100, "learning_rate": 2.0, "warmup": 0.1, "decay": 0.2}
    return TrainConfig(**(base | changes))


@pytest.mark.parametrize(
    ("step", "wanted"),
    [(0, 0.2), (4, 1.0), (9, 2.0), (10, 2.0), (79, 2.0), (80, 2.0), (90, 1.0), (99, 0.1)],
)
def test_warm_up_constant_decay(step: int, wanted: float) -> None:
    assert rate(config(), step) == pytest.approx(wanted)


def test_no_warm_up_and_no_decay_is_constant() -> None:
    flat = [rate(config(warmup=0.0, decay=0.0), step) for step in range(100)]
    assert flat == [2.0] * 100


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_all_learn(steps: int) -> None:
    assert all(rate(config(steps=steps), step) > 0 for step in range(steps))


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    named = list(tiny.model().named_parameters())
    adamw, muon = optimizers(config(optimizer="muon"), named)
    names = {id(p): name for name, p in named}
    of = [{names[id(p)] for g in o.param_groups for p in g["params"]} for o in (adamw, muon)]
    assert of[0] | of[1] == set(names.values())
    assert not of[0] & of[1]
    assert all("layers." in name and "norm" not in name for name in of[1])
    assert "model.embed_tokens.weight" in of[0]
    (only,) = optimizers(config(optimizer="adamw"), named)
    set_rate([only], 0.125)
    assert {group["lr"] for group in only.param_groups} == {0.125}


def test_a_worker_without_parameters_has_no_optimizer() -> None:
    assert optimizers(config(), []) == []


@pytest.mark.parametrize(
    ("square", "wanted"),
    [(0.25, 1.0), (1.0, 1.0), (4.0, 0.5)],
)
def test_clipping(square: float, wanted: float) -> None:
    assert clip_factor(square, 1.0) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("square", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_ends_training(square: float) -> None:
    """Times any factor it would stay one, and spoil the weights."""
    with pytest.raises(StageError, match="diverged"):
        clip_factor(square, 1.0)
