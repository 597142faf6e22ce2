"""Continuous batching for any causal model of transformers: a fixed number of slots.

A slot holds one answer. When it ends, the next prompt takes the slot, so the matrix products
always have the same shape: no row is padded to another's length, and a row's numbers do not
depend on its neighbours, which is what makes an interrupted run repeat bit for bit.

Shape suffixes: B slots, H heads, G key-value heads, S new tokens, T places of the cache, D head
width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

ATTENTION = "overproof_slots"


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of every slot, written in place.

    The caller sets `rows` and `columns` before each forward pass: which slots the batch's rows
    are, and where each row's new token goes. In prefill the new tokens follow the shared prefix.
    """

    def __init__(
        self, config: Any, slots: int, places: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(layers=[])
        width = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        shape = (slots, config.num_key_value_heads, places, width)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.prefix = 0  # places that hold the shared prefix in every slot
        self.span = places  # places that attention looks at
        self.rows = torch.arange(slots)
        self.columns = torch.zeros(slots, dtype=torch.long)
        self.prefilling = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values, return all that the rows may attend to."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self.prefilling:
            end = self.prefix + key_states.shape[2]
            keys[self.rows, :, self.prefix : end] = key_states
            values[self.rows, :, self.prefix : end] = value_states
            if not self.prefix:
                return key_states, value_states
            rows = self.rows
            return keys[rows, :, :end], values[rows, :, :end]
        keys[self.rows, :, self.columns] = key_states[:, :, 0]
        values[self.rows, :, self.columns] = value_states[:, :, 0]
        return keys[:, :, : self.span], values[:, :, : self.span]

    def share_prefix(self, length: int) -> None:
        """Copy the first `length` places of slot 0 into every slot."""
        for tensor in (*self.keys, *self.values):
            tensor[1:, :, :length] = tensor[:1, :, :length]
        self.prefix = length

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Positions are given with each call, so nothing is derived from a length."""
        return 0

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        """Masks are given with each call."""
        return self.span, 0


def grouped_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention that never copies the keys for grouped heads.

    In decode the heads of one group are laid along the token axis, so that the kernel reads
    the cache where it lies.
    """
    b, h, s, d = query.shape
    g = key.shape[1]
    if s == 1:
        query_BGRD = query.reshape(b, g, h // g, d)
        mask = attention_mask.expand(b, 1, h // g, key.shape[2])
        out = F.scaled_dot_product_attention(query_BGRD, key, value, attn_mask=mask, scale=scaling)
        return out.reshape(b, 1, h, d), None
    key = key.repeat_interleave(h // g, dim=1)
    value = value.repeat_interleave(h // g, dim=1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, grouped_attention)
