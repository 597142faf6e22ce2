from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import training
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from overproof.core.blocks import BLOCK, EMBEDDINGS, LEVELS, MAX_F16, kind_of
from overproof.core.config import load_recipe
from overproof.core.errors import StageError, UsageError
from overproof.core.methods import Quantize
from overproof.core.sections import TrainConfig
from overproof.release.targets.gguf import _without_dust
from overproof.student.arms import plain
from overproof.student.examples import TrainSet
from overproof.student.quantise import KINDS, release, stored
from overproof.student.train import batches
from overproof.student.worker import Shared, Worker

MATRIX = "model.layers.0.mlp.up_proj.weight"


def read_back(values: torch.Tensor, kind: str) -> np.ndarray:
    """What the package `gguf` makes of values and back, as the export calls it."""
    released = values.bfloat16().float().numpy()
    stored_as = GGMLQuantizationType[kind]
    data = quants.quantize(_without_dust(released, kind), stored_as)
    return quants.dequantize(data, stored_as).reshape(released.shape)


def hold(values: torch.Tensor, kind: str) -> None:
    ours = stored(MATRIX, values, kind).numpy()
    assert ours.dtype == np.float32
    assert np.array_equal(ours, read_back(values, kind))


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16"])
@pytest.mark.parametrize("scale", [1e-30, 1e-7, 0.02, 3e3])
def test_random_blocks_are_what_the_file_holds(kind: str, scale: float) -> None:
    make = torch.Generator().manual_seed(1)
    for spread in (1.0, 8.0):  # few and many orders of magnitude in a block
        values = torch.randn(64, 8 * BLOCK, generator=make)
        hold((values.sign() * values.abs() ** spread * scale).clamp(-6e4, 6e4), kind)


# Few values, so that ties, zeros of both signs, and subnormal numbers meet in one block.
ODD = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 8.0, -8.0, 127.0, -127.0, 63.5, 1e-8, -1e-8, 1e-39, -3e-45]
blocks = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=1, max_dims=1, max_side=3).map(lambda shape: (*shape, BLOCK)),
    elements=st.sampled_from([*ODD, *np.linspace(-8, 8, 65).tolist()])
    | st.floats(-6e4, 6e4, width=32),
    fill=st.sampled_from(ODD),
)


@given(blocks, st.sampled_from(["Q4_0", "Q8_0"]))
def test_odd_blocks_are_what_the_file_holds(values: np.ndarray, kind: str) -> None:
    hold(torch.from_numpy(values), kind)


@given(blocks)
def test_four_bits_keep_the_furthest_value_and_err_by_a_level_at_most(values: np.ndarray) -> None:
    exact = torch.from_numpy(values).bfloat16().float()
    found = stored(MATRIX, exact, "Q4_0")
    level = exact.abs().amax(1, keepdim=True) / 8
    slack = level * 8 * 2.0**-11 + 8 * 2.0**-24  # of the scale in fp16
    # The side without -8 scales ends at 7: a value there can miss by a whole level.
    assert bool(((found - exact).abs() <= level * 1.0001 + slack).all())
    far = exact.gather(1, exact.abs().argmax(1, keepdim=True))
    got = found.gather(1, exact.abs().argmax(1, keepdim=True))
    assert bool(((got - far).abs() <= slack).all())


@given(blocks)
def test_four_bits_of_what_is_released_are_the_same_again(values: np.ndarray) -> None:
    """Whatever bf16 leaves of a rounded value: the release is made of it, and the build of that."""
    once = stored(MATRIX, torch.from_numpy(values), "Q4_0")
    assert torch.equal(stored(MATRIX, once.bfloat16(), "Q4_0"), once)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", KINDS.values())
def test_what_is_no_number_is_refused(wrong: float, kind: str) -> None:
    values = torch.ones(2, BLOCK)
    values[1, 3] = wrong
    with pytest.raises(StageError, match=r"up_proj\.weight cannot be quantised"):
        stored(MATRIX, values, kind)


def test_the_rule_of_types() -> None:
    square = (64, 64)
    assert kind_of("Q4_0", MATRIX, square, 1.0) == "Q4_0"
    assert {kind_of("Q4_0", name, square, 1.0) for name in EMBEDDINGS} == {"Q8_0"}
    assert {kind_of("F16", name, square, 1.0) for name in EMBEDDINGS} == {"F16"}
    assert kind_of("Q4_0", "model.norm.weight", (64,), 1.0) == "F32"
    assert kind_of("Q4_0", MATRIX, (64, 80), 1.0) == "F16"
    assert kind_of("Q4_0", MATRIX, (64, 80), 7e4) == "F32"
    for kind, levels in LEVELS.items():
        assert kind_of(kind, MATRIX, square, MAX_F16 * levels) == kind
        assert kind_of(kind, MATRIX, square, MAX_F16 * levels * 1.01) == "F32"


def test_vectors_and_odd_rows_are_what_the_file_holds() -> None:
    vector, odd = torch.randn(64), torch.randn(4, 80)
    assert torch.equal(stored("model.norm.weight", vector, "Q4_0"), vector.bfloat16().float())
    assert torch.equal(stored(MATRIX, odd, "Q4_0"), odd.bfloat16().half().float())


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantise") / "examples"
    training.data(folder)
    return folder


def worker(examples: Path, dtype: torch.dtype = torch.float32, **changes: object) -> Worker:
    shared = Shared(training.student(), 1, dtype)
    return Worker(0, 1, shared, training.config(**changes), TrainSet.map(examples))


def one_step(of: Worker, step: int) -> None:
    training.one_step(of, next(batches(of.data, of.config, 3)), step)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_step_computes_with_the_builds_weights(examples: Path, kind: str) -> None:
    """And its gradient is that of the same model without any quantisation, on those weights."""
    ours = worker(examples, quantize=Quantize(format=kind, start=0.0))
    ours.publish(0)
    quantised = copy.deepcopy(training.student())
    with torch.no_grad():
        for name, parameter in quantised.named_parameters():
            parameter.copy_(stored(name, parameter, KINDS[kind]))
            assert torch.equal(ours.shared.weights.view(name), parameter)
    plainly = worker(examples)
    for name, parameter in quantised.named_parameters():
        plainly.shared.weights.view(name).copy_(parameter.detach())
    for one in (ours, plainly):
        one.gradients(one.take(next(batches(one.data, one.config, 3)), None), 0)
        one.gather()
    assert float(ours.shared.loss) == float(plainly.shared.loss)
    for name, master in ours.masters.items():
        assert torch.equal(master.grad, plainly.masters[name].grad), name  # straight through
        assert torch.equal(master, dict(training.student().named_parameters())[name])


def test_before_its_start_nothing_is_quantised(examples: Path) -> None:
    ours = worker(examples, quantize=Quantize(start=0.5))
    ours.publish(0)
    one_step(ours, 0)
    assert torch.equal(ours.shared.weights.vector, ours.shared.master.vector)
    one_step(ours, 5)  # of twelve: the next is the first that is quantised
    assert not torch.equal(ours.shared.weights.vector, ours.shared.master.vector)
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = stored(name, ours.masters[name], "Q4_0")
    assert torch.equal(ours.shared.weights.view(name), wanted)


@given(st.integers(1, 400), st.floats(0, 1, exclude_max=True))
def test_the_last_step_is_quantised_and_none_before_the_first(steps: int, start: float) -> None:
    section = Quantize(start=start)
    on = [section.on(step, steps) for step in range(steps)]
    assert on[-1]
    assert on == sorted(on)
    assert abs(on.count(False) - min(start * steps, steps - 1)) < 1 + 1e-6


def test_a_resumed_worker_computes_with_the_same_weights(examples: Path, tmp_path: Path) -> None:
    """In-process; tests/e2e/test_resume.py kills the real processes."""
    section = Quantize(start=0.0)
    whole = worker(examples, torch.bfloat16, quantize=section)
    whole.publish(0)
    one_step(whole, 0)
    whole.save(tmp_path)
    again = worker(examples, torch.bfloat16, quantize=section)
    again.restore(tmp_path)
    again.publish(1)
    assert torch.equal(again.shared.weights.vector, whole.shared.weights.vector)
    assert torch.equal(again.shared.master.vector, whole.shared.master.vector)


def test_learning_for_four_bits_leaves_less_to_lose(examples: Path) -> None:
    """Against a training of equal steps that is rounded at its end only."""
    found = {}
    for name, section in {"as they are": None, "for q4_0": Quantize(start=0.4)}.items():
        model = training.student()
        config = training.config(steps=30, quantize=section)
        training.alone(model, examples, config)
        rounded = copy.deepcopy(model)
        with torch.no_grad():
            for place, parameter in rounded.named_parameters():
                parameter.copy_(stored(place, parameter, "Q4_0"))
        measure = worker(examples)
        for place, parameter in rounded.named_parameters():
            measure.shared.weights.view(place).copy_(parameter.detach())
        measure.gradients(measure.take(next(batches(measure.data, config, 9)), None), 0)
        found[name] = float(measure.shared.loss)
    assert found["for q4_0"] < found["as they are"]


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_build_of_the_release_is_what_training_computed_with(kind: str) -> None:
    masters = training.student().state_dict()
    released = release(training.student(), kind).state_dict()
    rounded = 0
    for name, values in released.items():
        if name == "lm_head.weight":  # tied
            continue
        assert values.dtype == torch.bfloat16
        assert torch.equal(stored(name, values, kind), stored(name, masters[name], kind))
        rounded += not torch.equal(values, masters[name].bfloat16())
    assert rounded == (14 if kind == "Q4_0" else 0)  # two layers of seven matrices


def test_the_control_arm_is_quantised_too() -> None:
    config = TrainConfig(steps=4, quantize=Quantize())
    assert plain(config).quantize == Quantize()


def test_learning_for_a_build_that_is_not_made_is_refused() -> None:
    recipe = Path(__file__).parents[3] / "recipes/support.yaml"
    with pytest.raises(UsageError, match="recipe") as caught:
        load_recipe(recipe, ["train.quantize={format: q4_0}"])
    assert "gguf-q4_0, which export.targets lacks" in caught.value.render()
    load_recipe(recipe, ["train.quantize={format: q8_0}"])
