"""The decoder layers with their backward pass written out: what training spends its time on.

On a CPU, autograd over transformers' layers spends a third of a step in matrix products and the
rest in moving memory: gradients are made and then added to others, attention's backward pass has
no fast kernel, each norm is a dozen passes over the states. Here

1. query, key and value are one product, gate and up are another;
2. the gradient of a weight is written where it is needed, never added;
3. attention keeps its probabilities, so that its backward pass is four products and a softmax;
   query heads that share a key head stand in one matrix, so that keys are never repeated.

The numbers are those of transformers' layers up to rounding (tests compare both in fp32).

Shape suffixes: R sequences, T tokens, N = R * T, D model width, H query heads, K key heads,
G = H / K, E width of a head, I inner width of the MLP, Q = (H + 2 * K) * E.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from overproof.student.flat import Flat

MATRICES = {
    "qkv_QD": ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    "out_DD": ["self_attn.o_proj.weight"],
    "gate_up_ID": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "down_DI": ["mlp.down_proj.weight"],
}
NORMS = {"before_D": "input_layernorm.weight", "after_D": "post_attention_layernorm.weight"}


class Body(Protocol):
    """What turns a batch into last hidden states, before the head."""

    written: frozenset[str]

    def states(self, inputs: dict[str, Any]) -> Tensor:
        """Hidden states after the final norm, (R, T, D)."""


@dataclass(frozen=True)
class Place:
    """What all layers of one batch share.

    Attributes:
        mask_RTT: 0 where a token attends, else the least number, in the type of the states.
        cos, sin: rotary angles' cosine and sine, (R, T, 1, E / 2).
        scaled_cos, scaled_sin: the same times the softmax's scale, (R, T, 1, 1, E / 2), for the
            queries: one pass less over the scores.
        heads: query heads; keys: key heads; eps: of the norms.
    """

    mask_RTT: Tensor
    cos: Tensor
    sin: Tensor
    scaled_cos: Tensor
    scaled_sin: Tensor
    heads: int
    keys: int
    eps: float


@dataclass(frozen=True)
class Weights:
    """A layer's weights, or their gradients, with what belongs together in one matrix."""

    qkv_QD: Tensor
    out_DD: Tensor
    gate_up_ID: Tensor
    down_DI: Tensor
    before_D: Tensor
    after_D: Tensor

    @classmethod
    def of(cls, flat: Flat, layer: int) -> Weights:
        """Views of one layer's part of `flat`."""
        prefix = f"model.layers.{layer}."
        matrices = {
            key: flat.joined([prefix + name for name in names]) for key, names in MATRICES.items()
        }
        return cls(**matrices, **{key: flat.view(prefix + name) for key, name in NORMS.items()})


def make_body(model: Any, weights: Flat, grads: Flat) -> Body:
    """The fast layers where the model has plain Llama layers, else transformers' own.

    Args:
        model: its parameters are views of `weights`.
        grads: where the layers' gradients go; the same places.
    """
    return FusedBody(model, weights, grads) if fits(model) else PlainBody(model)


def fits(model: Any) -> bool:
    """Whether the layers are what this module has written out, and all of them learn."""
    config = model.config
    return (
        all(parameter.requires_grad for parameter in model.parameters())
        and all(type(layer) is LlamaDecoderLayer for layer in model.model.layers)
        and not (config.attention_bias or config.mlp_bias)
        and config.hidden_act == "silu"
        and config.attention_dropout == 0
    )


class PlainBody:
    """Any decoder, as transformers runs it."""

    written: frozenset[str] = frozenset()

    def __init__(self, model: Any) -> None:
        self.model = model

    def states(self, inputs: dict[str, Any]) -> Tensor:
        """See `Body`."""
        hidden: Tensor = self.model.base_model(**inputs).last_hidden_state
        return hidden


class FusedBody:
    """Llama layers with their backward pass written out.

    Attributes:
        written: parameters whose gradient each backward pass overwrites; no need to clear them.
    """

    def __init__(self, model: Any, weights: Flat, grads: Flat) -> None:
        self.body, self.config = model.model, model.config
        count = range(len(self.body.layers))
        self.layers = [(Weights.of(weights, at), Weights.of(grads, at)) for at in count]
        self.written = frozenset(name for name in weights.places if ".layers." in name)

    def states(self, inputs: dict[str, Any]) -> Tensor:
        """See `Body`."""
        hidden_RTD = self.body.embed_tokens(inputs["input_ids"])
        rows, length, width = hidden_RTD.shape
        cos, sin = self.body.rotary_emb(hidden_RTD, inputs["position_ids"])
        half = cos.shape[-1] // 2
        cos, sin = cos[..., None, :half].contiguous(), sin[..., None, :half].contiguous()
        scale = (2 * half) ** -0.5
        place = Place(
            inputs["attention_mask"].view(rows, length, length),
            cos,
            sin,
            (cos * scale).unsqueeze(2),
            (sin * scale).unsqueeze(2),
            self.config.num_attention_heads,
            self.config.num_key_value_heads,
            self.config.rms_norm_eps,
        )
        hidden_ND = hidden_RTD.view(rows * length, width)
        for weights, grads in self.layers:
            hidden_ND = _Layer.apply(hidden_ND, weights, grads, place)
        states: Tensor = self.body.norm(hidden_ND.view(rows, length, width))
        return states


class _Layer(torch.autograd.Function):
    """One decoder layer: attention, then the MLP, each behind a norm and added to the states."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weights: Weights, grads: Weights, place: Place) -> Tensor:
        normed_ND, keep_before = _norm(x_ND, weights.before_D, place.eps)
        qkv_NQ = normed_ND @ weights.qkv_QD.T
        mixed_ND, keep_attention = _attend(qkv_NQ, place)
        middle_ND = torch.addmm(x_ND, mixed_ND, weights.out_DD.T)
        normed2_ND, keep_after = _norm(middle_ND, weights.after_D, place.eps)
        gate_up_NI = normed2_ND @ weights.gate_up_ID.T
        gate_NI, up_NI = gate_up_NI.chunk(2, dim=1)
        open_NI = F.silu(gate_NI)
        inner_NI = open_NI * up_NI
        ctx.save_for_backward(
            normed_ND, mixed_ND, normed2_ND, gate_up_NI, open_NI, inner_NI,
            *keep_before, *keep_attention, *keep_after,
        )  # fmt: skip
        ctx.weights, ctx.grads, ctx.place = weights, grads, place
        return torch.addmm(middle_ND, inner_NI, weights.down_DI.T)

    @staticmethod
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor | None, ...]:
        (
            normed_ND, mixed_ND, normed2_ND, gate_up_NI, open_NI, inner_NI,
            x_hat, x_scale, q, k, v, p, middle_hat, middle_scale,
        ) = ctx.saved_tensors  # fmt: skip
        weights, grads, place = ctx.weights, ctx.grads, ctx.place
        gate_NI, up_NI = gate_up_NI.chunk(2, dim=1)
        # The MLP.
        torch.mm(dy_ND.T, inner_NI, out=grads.down_DI)
        d_inner_NI = dy_ND @ weights.down_DI
        d_gate_up_NI = torch.empty_like(gate_up_NI)
        d_gate_NI, d_up_NI = d_gate_up_NI.chunk(2, dim=1)
        torch.mul(d_inner_NI, open_NI, out=d_up_NI)
        d_gate_NI.copy_(torch.ops.aten.silu_backward(d_inner_NI.mul_(up_NI), gate_NI))
        torch.mm(d_gate_up_NI.T, normed2_ND, out=grads.gate_up_ID)
        d_normed2_ND = d_gate_up_NI @ weights.gate_up_ID
        d_middle_ND = _norm_backward(
            d_normed2_ND, middle_hat, middle_scale, weights.after_D, grads.after_D
        ).add_(dy_ND)
        # Attention.
        torch.mm(d_middle_ND.T, mixed_ND, out=grads.out_DD)
        d_qkv_NQ = _attend_backward(d_middle_ND @ weights.out_DD, (q, k, v, p), place)
        torch.mm(d_qkv_NQ.T, normed_ND, out=grads.qkv_QD)
        dx_ND = _norm_backward(
            d_qkv_NQ @ weights.qkv_QD, x_hat, x_scale, weights.before_D, grads.before_D
        ).add_(d_middle_ND)
        return dx_ND, None, None, None


def _norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """RMSNorm; kept for the way back: the normed states before their weight, and the scale."""
    square_N1 = torch.linalg.vector_norm(
        x_ND, dim=-1, keepdim=True, dtype=torch.promote_types(x_ND.dtype, torch.float32)
    ).square()
    scale_N1 = torch.rsqrt(square_N1 / x_ND.shape[-1] + eps).to(x_ND.dtype)
    hat_ND = x_ND * scale_N1
    return hat_ND * weight_D, (hat_ND, scale_N1)


def _norm_backward(
    dy_ND: Tensor, hat_ND: Tensor, scale_N1: Tensor, weight_D: Tensor, grad_D: Tensor
) -> Tensor:
    """Gradient by the norm's input; that by its weight goes to `grad_D`."""
    torch.sum(dy_ND * hat_ND, 0, out=grad_D)
    dy_ND = dy_ND * weight_D
    along_N1 = (dy_ND * hat_ND).mean(-1, keepdim=True)
    return dy_ND.addcmul_(hat_ND, along_N1, value=-1.0).mul_(scale_N1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, back: bool = False) -> None:
    """Rotary position embedding of (R, T, heads, E): halves a, b become a c - b s, b c + a s.

    Args:
        back: by the opposite angle.
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    sign = -1.0 if back else 1.0
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin, value=sign)


def _split(qkv_NQ: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
    """Views (R, T, H, E), (R, T, K, E), (R, T, K, E) of queries, keys and values."""
    rows, length, _ = place.mask_RTT.shape
    heads = qkv_NQ.view(rows, length, place.heads + 2 * place.keys, -1)
    q, k, v = heads.split([place.heads, place.keys, place.keys], dim=2)
    return q, k, v


def _attend(qkv_NQ: Tensor, place: Place) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Attention; kept for the way back: scaled queries, keys, values and probabilities.

    Matrices are (R K, G T, E) for queries and (R K, T, E) for keys and values.
    """
    rows, length, _ = place.mask_RTT.shape
    keys, group = place.keys, place.heads // place.keys
    q_in, k_in, v_in = _split(qkv_NQ, place)
    width = q_in.shape[-1]
    q = torch.empty(rows, keys, group, length, width, dtype=qkv_NQ.dtype)
    k = torch.empty(rows, keys, length, width, dtype=qkv_NQ.dtype)
    q_out = q.permute(0, 3, 1, 2, 4)
    _rotate(q_in.unflatten(2, (keys, group)), place.scaled_cos, place.scaled_sin, q_out)
    _rotate(k_in, place.cos, place.sin, k.permute(0, 2, 1, 3))
    q = q.view(rows * keys, group * length, width)
    k = k.view(rows * keys, length, width)
    v = v_in.permute(0, 2, 1, 3).reshape(rows * keys, length, width)
    scores = torch.bmm(q, k.transpose(1, 2))
    scores.view(rows, keys, group, length, length).add_(place.mask_RTT[:, None, None])
    p = torch.softmax(scores, -1)
    mixed = torch.bmm(p, v).view(rows, keys, group, length, width)
    return mixed.permute(0, 3, 1, 2, 4).reshape(rows * length, -1), (q, k, v, p)


def _attend_backward(
    d_mixed_ND: Tensor, kept: tuple[Tensor, Tensor, Tensor, Tensor], place: Place
) -> Tensor:
    """Gradient by queries, keys and values, (N, Q)."""
    q, k, v, p = kept
    rows, length, _ = place.mask_RTT.shape
    keys, group, width = place.keys, place.heads // place.keys, q.shape[-1]
    d_out = d_mixed_ND.view(rows, length, keys, group, width).permute(0, 2, 3, 1, 4)
    d_out = d_out.reshape(rows * keys, group * length, width)
    d_v = torch.bmm(p.transpose(1, 2), d_out)
    d_p = torch.bmm(d_out, v.transpose(1, 2))
    d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype)
    d_q = torch.bmm(d_scores, k).view(rows, keys, group, length, width)
    d_k = torch.bmm(d_scores.transpose(1, 2), q).view(rows, keys, length, width)
    d_qkv_NQ = torch.empty(rows * length, (place.heads + 2 * keys) * width, dtype=d_mixed_ND.dtype)
    q_out, k_out, v_out = _split(d_qkv_NQ, place)
    q_grouped = q_out.unflatten(2, (keys, group))
    _rotate(d_q.permute(0, 3, 1, 2, 4), place.scaled_cos, place.scaled_sin, q_grouped, back=True)
    _rotate(d_k.permute(0, 2, 1, 3), place.cos, place.sin, k_out, back=True)
    v_out.copy_(d_v.view(rows, keys, length, width).permute(0, 2, 1, 3))
    return d_qkv_NQ
