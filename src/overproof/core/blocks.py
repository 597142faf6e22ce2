"""Which tensor of a stored model takes which number type: one rule for training and for builds.

A block type stores 32 neighbours of a row as small integers and one scale in fp16 (ggml's
`block_q8_0` and `block_q4_0`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

BLOCK = 32  # values that share a scale: QK8_0 and QK4_0 of ggml
MAX_F16 = 65504.0  # largest finite half-precision number, IEEE 754 binary16
LEVELS = {"Q8_0": 127, "Q4_0": 8}  # the largest value of a block, in scales
# Read at each token, and the last thing before the distribution: 8 bits where the rest has 4.
# Not Q6_K, as llama.cpp's own tool has it: Ascend's backend runs F16, Q8_0 and Q4_0 alone.
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")

Kind = Literal["F32", "F16", "Q8_0", "Q4_0"]


def kind_of(wanted: Kind, name: str, shape: Sequence[int], largest: float) -> Kind:
    """The type that a tensor is stored in.

    Vectors (norms, biases, rotary factors) are small and sensitive: fp32. Rows that do not fill
    whole blocks cannot take a block type, and values beyond the range of fp16, or a block whose
    scale is beyond it, need fp32.

    Args:
        wanted: type of the build's matrices.
        name: of the tensor in the model.
        largest: absolute value in it.
    """
    if len(shape) < 2:
        return "F32"
    kind = wanted
    if wanted == "Q4_0" and name in EMBEDDINGS:
        kind = "Q8_0"
    if kind in LEVELS and shape[-1] % BLOCK:
        kind = "F16"
    return kind if largest <= MAX_F16 * LEVELS.get(kind, 1) else "F32"
