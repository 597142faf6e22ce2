from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from overproof.core.blocks import BLOCK, EMBEDDINGS, LEVELS, MAX_F16, kind_of
from overproof.core.errors import StageError
from overproof.release.targets.gguf import _without_dust
from overproof.student.quantise import KINDS, stored

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
