"""A causal language model of transformers over packed sequences, or over one example a row.

Shape suffixes: N positions, P some of them, R sequences, T tokens of a sequence, D width,
V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from overproof.core.workers import sharing  # noqa: E402
from overproof.data.pack import Packed, longest_first, pack  # noqa: E402

# Plain stacks of decoder layers whose attention takes any mask (tests run each of them). All other
# architectures go the general way: docs/architectures.md.
PACKED = frozenset({"gemma", "llama", "mistral", "qwen2", "qwen3", "smollm3"})


def packs(model: Any) -> bool:
    """Whether a model reads several examples a row, and runs layer by layer; by its configuration.

    Attention over compressed or linear states of the whole row cannot be told to leave out a
    neighbour, so any other model reads one example a row, as transformers itself runs it.

    Args:
        model: of transformers, or its configuration.
    """
    return getattr(model, "config", model).model_type in PACKED


def laid(model: Any, prefix: Sequence[int], texts: Sequence[Sequence[int]], length: int) -> Packed:
    """Texts as this model reads them, the longest first."""
    return pack(prefix, texts, length, longest_first(texts), alone=not packs(model))


def inputs_of(model: Any, batch: Packed) -> dict[str, Tensor | bool]:
    """Arguments of this model for sequences that are laid as it reads them.

    With one example a row nothing is masked: what fills a row up stands behind its text, where a
    causal model does not look.
    """
    if packs(model):
        inputs = model_inputs(batch, model.dtype)
    else:
        inputs = {"input_ids": torch.from_numpy(batch.tokens_RT), "use_cache": False}
    return {
        name: value.to(model.device) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def head_of(model: Any) -> nn.Linear:
    """The output embedding, which makes logits of last hidden states."""
    head: nn.Linear = model.get_output_embeddings()
    return head


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


def fast_dtype(model: Any) -> torch.dtype:
    """The type to compute this model in: bf16 where the processor multiplies it faster.

    A model that does not pack computes in fp32: which of its parts bf16 would spoil (routers,
    hyper-connections) is not known here.
    """
    return torch.bfloat16 if device.processor().bf16 and packs(model) else torch.float32


def mixed(model: Any) -> Any:
    """A copy whose layers multiply in bf16; embedding, norms, residual stream and head stay fp32.

    Everything but the layers' matrices is shared with the model. The model itself, where it is
    mixed already or computes in fp32 (`fast_dtype`). `logits_at` runs both.
    """
    if fast_dtype(model) != torch.bfloat16 or layers_dtype(model) == torch.bfloat16:
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
    if not packs(model):
        return torch.promote_types(model.dtype, torch.float32)
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
        yield Read(where, head_of(model)(hidden_PD), hidden_PD)


@torch.inference_mode()
def states_at(
    model: Any, packed: Packed, wanted_N: NDArray[np.bool_], sequences: int
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Last hidden states at the wanted positions, in batches of packed sequences.

    Args:
        model: one type throughout, or `mixed`. packed: laid as it reads them, see `laid`.
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
            hidden_RTD = model.base_model(**inputs_of(model, batch)).last_hidden_state
        yield number_N[batch.source_RT[picked_RT]], hidden_RTD[torch.from_numpy(picked_RT)]
