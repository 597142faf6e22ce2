"""What is left of weights in a build of fewer bits: the block arithmetic of llama.cpp, in torch.

Training computes with these in its last part (`train.quantize`), so that the student learns to do
without what the build leaves out; the gradients go to the weights behind them as they are
(straight-through estimator, arXiv 1308.3432). Every value is that of the exported file, read back:
tests hold this against the package `gguf`, which writes it.

Shape suffixes: B blocks, K values of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from overproof.core.blocks import BLOCK, Kind, kind_of
from overproof.core.errors import StageError
from overproof.student.saved import rounded

KINDS: dict[str, Kind] = {"q4_0": "Q4_0", "q8_0": "Q8_0"}  # by the recipe's names
RELEASED = torch.bfloat16  # the type of the weights in a release, which builds are made of


def stored(name: str, values: Tensor, wanted: Kind) -> Tensor:
    """A tensor as a reader of the build finds it, fp32.

    Args:
        name: in the model. values: of any type; what the build reads is that in the release.
        wanted: type of the build's matrices.

    Raises:
        StageError: a value is no finite number.
    """
    exact = values.to(RELEASED).to(torch.float32)
    kind = _kind(name, exact, wanted)
    if kind == "F32":
        return exact
    if kind == "F16":
        return exact.half().float()
    blocks_BK = exact.view(-1, BLOCK)
    rounded_BK = _four_bits(blocks_BK) if kind == "Q4_0" else _eight_bits(blocks_BK)
    return rounded_BK.view(exact.shape)


def release(model: Any, wanted: Kind | None) -> Any:
    """The model as it is released: in bf16, what the build has in 4 bits rounded to these.

    So every number that is told of a student trained for a build is one of that build, and all
    other builds are of the same student; weights that it was never measured with would do worse
    (docs/adr/0020). Nothing is lost to the build: of the rounded values, in bf16, it is the same
    bytes again, for their scale is an eighth of the largest of a block, a bf16 number.

    Args:
        model: with the weights that the gradients went to; changed in place.
        wanted: type of the matrices of the build that it was trained for; None: of none.

    Raises:
        StageError: a value is no finite number.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if wanted == "Q4_0" and _kind(name, parameter.to(RELEASED), wanted) == "Q4_0":
                parameter.copy_(stored(name, parameter, wanted))
    return rounded(model)


def _kind(name: str, values: Tensor, wanted: Kind) -> Kind:
    largest = float(values.abs().max())
    if not largest < float("inf"):
        raise StageError(
            f"{name} cannot be quantised",
            details=["a value is not finite"],
            hint="lower train.learning_rate or raise train.warmup",
        )
    return kind_of(wanted, name, values.shape, largest)


def _four_bits(blocks_BK: Tensor) -> Tensor:
    """Q4_0: the value furthest from zero becomes -8 scales, so one more level lies on its side."""
    at_B1 = blocks_BK.abs().argmax(1, keepdim=True)  # the first, where several are as far
    scale_B1 = blocks_BK.gather(1, at_B1) / -8
    level_BK = (blocks_BK * _inverse(scale_B1)).add_(8.5).trunc_().clamp_(0, 15).sub_(8)
    return level_BK.mul_(scale_B1.half().float())


def _eight_bits(blocks_BK: Tensor) -> Tensor:
    """Q8_0: levels from -127 to 127, halves rounded away from zero."""
    scale_B1 = blocks_BK.abs().amax(1, keepdim=True) / 127
    exact_BK = blocks_BK * _inverse(scale_B1)
    size_BK = exact_BK.abs()
    level_BK = size_BK.floor()
    level_BK.add_(size_BK.sub_(level_BK).mul_(2).floor_()).copysign_(exact_BK)
    return level_BK.mul_(scale_B1.half().float())


def _inverse(scale_B1: Tensor) -> Tensor:
    """1 / scale; 0 for a block whose scale is nothing in fp16, and which is stored as zeros."""
    return torch.where(scale_B1.half() == 0, 0.0, 1 / scale_B1)
