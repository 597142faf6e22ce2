"""Narrowing a student: hidden channels, groups of attention heads, neurons of the MLPs.

What stays is what carries most over calibration text in one pass of the intact base, without a
gradient (activation importance, Minitron, arXiv 2407.14679):

1. a channel of the hidden states: the mean size of what the norms give there, over all norms;
2. a group of query heads with the key and value head that they share: the mean length of what it
   adds to the states;
3. a neuron of an MLP: its mean square activation times the length of its output weights.

A norm divides by the root mean square over all channels. Over the kept ones alone it divides by
another number, so that its output would be too large or too small; its weights are multiplied by
the mean ratio of the two, which is 1 where nothing is dropped.

Shape suffixes: R sequences, T tokens, P valid positions, D hidden channels, I neurons of an MLP,
L layers, G groups, H query heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.errors import StageError  # noqa: E402
from overproof.core.sections import StudentConfig  # noqa: E402
from overproof.data.pack import Packed  # noqa: E402
from overproof.student.stack import USE, Stack  # noqa: E402

READS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
WRITES = ("self_attn.o_proj", "mlp.down_proj")
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")  # over the channels of one head
PROBE_GAP = 1e-3  # relative, between a norm and the RMSNorm that it is taken for


@dataclass(frozen=True)
class Carried:
    """What the parts of a base carried over calibration text.

    Attributes:
        channels_D: see 1. above. groups_LG: see 2. above.
    """

    channels_D: Tensor
    groups_LG: Tensor


def demand_narrow(base: Any, config: StudentConfig) -> None:
    """Refuse, before any work, a base whose heads or channels this module cannot drop.

    Raises:
        StageError: a layer has a part that is not known here.
    """
    if config.hidden is None and config.kv_heads is None:
        return
    known = {*READS, *WRITES, *HEAD_NORMS, *_norm_names(base)}
    layer = base.model.layers[0]
    strange = sorted({name.rpartition(".")[0] for name, _ in layer.named_parameters()} - known)
    wide = [
        name
        for name in HEAD_NORMS
        if name not in strange
        and hasattr(layer.self_attn, name.partition(".")[2])
        and len(layer.get_submodule(name).weight) != _head_width(base)
    ]
    if strange or wide:
        raise StageError(
            f"heads and hidden channels of {type(base).__name__} cannot be dropped",
            details=[f"unknown parts of a layer: {', '.join([*strange, *wide])}"],
            hint="leave student.kv_heads and student.hidden out, or " + USE,
        )
    if config.hidden is not None:
        for norm in _norms(base):
            _demand_plain(base, norm)


def _norm_names(model: Any) -> list[str]:
    """Names of a layer's norms over all channels."""
    return [name for name, module in model.model.layers[0].named_children() if _is_norm(module)]


def _is_norm(module: Any) -> bool:
    names = [name for name, _ in module.named_parameters()]
    return names == ["weight"] and module.weight.ndim == 1


def _norms(model: Any) -> Iterator[Any]:
    """Every norm over all channels, in the order of the work."""
    for layer in model.model.layers:
        yield from (getattr(layer, name) for name in _norm_names(model))
    yield model.model.norm


@torch.inference_mode()
def _demand_plain(model: Any, norm: Any) -> None:
    """A norm must divide by the root mean square and multiply by its weights, and do no more."""
    x_D = torch.linspace(-1.0, 2.0, len(norm.weight), dtype=norm.weight.dtype)
    got, wanted = norm(x_D).float(), (x_D / _rms(x_D) * norm.weight).float()
    if not float((got - wanted).norm()) <= PROBE_GAP * float(wanted.norm()):
        raise StageError(
            f"hidden channels of {type(model).__name__} cannot be dropped",
            details=[f"its {type(norm).__name__} is no plain RMSNorm"],
            hint="leave student.hidden out, or " + USE,
        )


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean(-1, keepdim=True).sqrt()


def _head_width(model: Any) -> int:
    config = model.config
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


@torch.inference_mode()
def measure(base: Any, batch: Packed, ids_RT: Tensor) -> Carried:
    """Run calibration text through the intact base and see what its parts carry.

    Args:
        base: in the type to run it in.
        batch: packed sequences. ids_RT: the same in the base's tokens.
    """
    stack, valid = Stack(base, batch, ids_RT), torch.from_numpy(batch.segments_RT >= 0)
    groups = base.config.num_key_value_heads
    channels_D = torch.zeros(base.config.hidden_size)
    rows: list[Tensor] = []

    def saw_norm(_module: Any, _given: Any, out_RTD: Tensor) -> None:
        channels_D.add_(out_RTD[valid].float().abs().mean(0))

    def saw_heads(module: Any, given: tuple[Tensor, ...]) -> None:
        weight_DGJ = module.weight.unflatten(1, (groups, -1))
        mixed_PGJ = given[0][valid].unflatten(1, (groups, -1))
        added = [
            (mixed_PGJ[:, one] @ weight_DGJ[:, one].T).float().norm(dim=-1).mean()
            for one in range(groups)
        ]
        rows.append(torch.stack(added))

    handles = [norm.register_forward_hook(saw_norm) for norm in _norms(base)]
    handles += [
        layer.self_attn.o_proj.register_forward_pre_hook(saw_heads) for layer in base.model.layers
    ]
    base.model.norm(stack.through(stack.embedded, range(len(base.model.layers))))
    for handle in handles:
        handle.remove()
    return Carried(channels_D, torch.stack(rows))


def largest(scores: Tensor, count: int) -> Tensor:
    """The places of the largest scores, in rising order; of equals the first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:count].sort().values


def drop_groups(student: Any, kept: Sequence[Tensor]) -> None:
    """Leave each layer these groups of heads; as many in every layer.

    Args:
        kept: for each layer the groups that stay, in rising order.
    """
    config, width = student.config, _head_width(student)
    share = config.num_attention_heads // config.num_key_value_heads
    for layer, groups in zip(student.model.layers, kept, strict=True):
        attention = layer.self_attn
        keys = _spread(groups, width)
        queries = _spread(groups, width * share)
        for name, places in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            setattr(attention, name, taken(getattr(attention, name), places, 0))
        attention.o_proj = taken(attention.o_proj, queries, 1)
    config.head_dim = width  # no longer what the other numbers imply
    config.num_key_value_heads = len(kept[0])
    config.num_attention_heads = share * len(kept[0])


def _spread(blocks: Tensor, size: int) -> Tensor:
    """The places of all members of blocks of that size."""
    return (blocks[:, None] * size + torch.arange(size)).flatten()


@torch.inference_mode()
def norm_ratios(student: Any, batch: Packed, channels: Tensor) -> list[float]:
    """For each norm the root mean square over some channels by that over all, its mean.

    Exactly 1 where the channels are all.
    """
    stack, valid = Stack(student, batch), torch.from_numpy(batch.segments_RT >= 0)
    found: list[float] = []

    def saw(_module: Any, given: tuple[Tensor, ...]) -> None:
        x_PD = given[0][valid]
        found.append(float((_rms(x_PD[:, channels]) / _rms(x_PD)).mean()))

    handles = [norm.register_forward_pre_hook(saw) for norm in _norms(student)]
    student.model.norm(stack.through(stack.embedded, range(len(student.model.layers))))
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def drop_channels(student: Any, channels: Tensor, ratios: Sequence[float]) -> None:
    """Leave the hidden states these channels: embedding, norms, every projection, head.

    Args:
        ratios: see `norm_ratios`.
    """
    config, body = student.config, student.model
    config.head_dim = _head_width(student)  # no longer what the other numbers imply
    for norm, ratio in zip(_norms(student), ratios, strict=True):
        norm.weight = torch.nn.Parameter(norm.weight[channels] * ratio)
    for layer in body.layers:
        for names, axis in ((READS, 1), (WRITES, 0)):
            for name in names:
                layer.set_submodule(name, taken(layer.get_submodule(name), channels, axis))
    body.embed_tokens.weight = torch.nn.Parameter(body.embed_tokens.weight[:, channels].clone())
    body.embed_tokens.embedding_dim = len(channels)
    student.lm_head = taken(student.lm_head, channels, 1)
    config.hidden_size = len(channels)
    student.tie_weights()


@torch.no_grad()
def narrow_mlp(mlp: Any, inner_RTI: Tensor, valid: Tensor, width: int) -> Tensor:
    """Leave an MLP the neurons that carry most, see 3. above.

    Returns:
        the activations of the kept neurons.
    """
    energy_I = inner_RTI[valid].square().mean(0) * mlp.down_proj.weight.square().sum(0)
    kept = largest(energy_I, width)
    for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        setattr(mlp, name, taken(getattr(mlp, name), kept, axis))
    return inner_RTI[..., kept]


@torch.no_grad()
def taken(linear: Any, places: Tensor, axis: int) -> Any:
    """A linear map with some of its rows (axis 0, its outputs) or columns (axis 1, its inputs)."""
    weight = linear.weight.index_select(axis, places).clone()
    bias = linear.bias
    new = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    new.weight = torch.nn.Parameter(weight)
    if bias is not None:
        new.bias = torch.nn.Parameter(bias[places].clone() if axis == 0 else bias.clone())
    return new.to(weight.dtype)
