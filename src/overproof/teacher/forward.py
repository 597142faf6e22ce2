"""A causal language model of transformers over packed sequences.

Shape suffixes: N positions, P some of them, R sequences, T tokens of a sequence, D width,
V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from overproof.core.workers import sharing  # noqa: E402
from overproof.data.pack import Packed  # noqa: E402

LINE_BYTES = 64  # where torch lets a tensor's memory begin; sums may follow from it


def model_inputs(batch: Packed, dtype: torch.dtype) -> dict[str, Tensor | bool]:
    """Arguments of a transformers model for packed sequences."""
    allowed_RTT = torch.from_numpy(batch.mask_RTT())
    mask = torch.zeros(allowed_RTT.shape, dtype=dtype)
    mask.masked_fill_(~allowed_RTT, torch.finfo(dtype).min)
    return {
        "input_ids": torch.from_numpy(batch.tokens_RT),
        "attention_mask": mask[:, None],
        "position_ids": torch.from_numpy(batch.positions_RT),
        "use_cache": False,
    }


def halved(model: Any) -> Any:
    """The model itself with its parameters in bf16.

    Buffers stay as they are: rotary frequencies in bf16 turn what stands at place 200 by up to
    0.3 rad.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def mixed(model: Any) -> Any:
    """A copy whose layers multiply in bf16; embedding, norms, residual stream and head stay fp32.

    Everything but the layers' matrices is shared with the model. The model itself, where it is
    mixed already or the processor multiplies bf16 no faster. `logits_at` runs both.
    """
    if not device.processor().bf16 or layers_dtype(model) == torch.bfloat16:
        return model
    products = [part for part in model.model.layers.modules() if isinstance(part, nn.Linear)]
    inside = {id(one) for part in products for one in part.parameters()}
    memo = {id(one): one for one in model.parameters() if id(one) not in inside}
    found = copy.deepcopy(model, memo)
    for part in found.model.layers.modules():
        if isinstance(part, nn.Linear):
            part.to(torch.bfloat16)
    return found


def share(model: Any) -> None:
    """Move a model's values to where worker processes see them, those of one type side by side.

    Each block is an open file, and a worker is started with few: see `core.workers`. What is
    shared already stays where it is.

    Raises:
        StageError: there is no room for it.
    """
    found: dict[torch.dtype, list[Tensor]] = {}
    for value in chain(model.parameters(), model.buffers()):
        if not value.is_shared():
            found.setdefault(value.dtype, []).append(value)
    for dtype, values in found.items():
        step = LINE_BYTES // dtype.itemsize
        sizes = [math.ceil(value.numel() / step) * step for value in values]
        with sharing():
            parts = torch.zeros(sum(sizes), dtype=dtype).share_memory_().split(sizes)
        for value, part in zip(values, parts, strict=True):
            value.data = part[: value.numel()].view(value.shape).copy_(value.detach())


def layers_dtype(model: Any) -> torch.dtype:
    """The type that the model's layers multiply in."""
    parts = model.model.layers.modules()
    found = next((part.weight.dtype for part in parts if isinstance(part, nn.Linear)), model.dtype)
    return torch.bfloat16 if found == torch.bfloat16 else torch.float32


class Read(NamedTuple):
    """What a model says at some positions.

    Attributes:
        where: numbers of the positions among all wanted ones.
        logits_PV: in the type of the model's head.
        hidden_PD: the last hidden states.
    """

    where: NDArray[np.int64]
    logits_PV: Tensor
    hidden_PD: Tensor


@torch.inference_mode()
def logits_at(
    model: Any, packed: Packed, wanted_N: NDArray[np.bool_], sequences: int
) -> Iterator[Read]:
    """Logits at the wanted positions, in batches of packed sequences; see `states_at`."""
    for where, hidden_PD in states_at(model, packed, wanted_N, sequences):
        yield Read(where, model.lm_head(hidden_PD), hidden_PD)


@torch.inference_mode()
def states_at(
    model: Any, packed: Packed, wanted_N: NDArray[np.bool_], sequences: int
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Last hidden states at the wanted positions, in batches of packed sequences.

    Args:
        model: one type throughout, or `mixed`.
        wanted_N: which positions, over the concatenation of all packed examples.
        sequences: of a batch; bounds the memory.

    Yields:
        numbers of the positions among all wanted ones, and the states there, (P, D).
    """
    number_N = np.cumsum(wanted_N) - 1
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=layers_dtype(model) != model.dtype)
    for start in range(0, len(packed.tokens_RT), sequences):
        batch = packed.rows(slice(start, start + sequences))
        picked_RT = (batch.source_RT >= 0) & wanted_N[batch.source_RT]
        with autocast:
            hidden_RTD = model.model(**model_inputs(batch, model.dtype)).last_hidden_state
        yield number_N[batch.source_RT[picked_RT]], hidden_RTD[torch.from_numpy(picked_RT)]
