"""A random DeepSeek V4 of half a million parameters: every kind of attention and of routing."""

from __future__ import annotations

from typing import Any

import tiny_teacher as tiny
import torch
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM, PreTrainedTokenizerFast

from overproof.core.artifact import Resource
from overproof.teacher.local import Teacher

EXPERTS, CHOSEN = 8, 2
SHAPE = {
    "vocab_size": tiny.TOKENS,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 32,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "num_experts_per_tok": CHOSEN,
    "n_routed_experts": EXPERTS,
    "num_hash_layers": 1,
    "compress_ratios": [0, 4, 128, 4, 0],
    "compress_rate_hca": 8,
    "hc_mult": 2,
    "hc_sinkhorn_iters": 3,
    "sliding_window": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 0,
}


def model(*, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    made = DeepseekV4ForCausalLM(DeepseekV4Config(**(SHAPE | changes))).float().eval()
    with torch.no_grad():
        for name, values in made.named_parameters():
            if "norm" not in name:
                values.normal_(0, 0.15)
        for name, table in made.named_buffers():
            if name.endswith("tid2eid"):
                rows = torch.rand(len(table), made.config.n_routed_experts)
                table.copy_(rows.topk(table.shape[1]).indices)
            if name.endswith("correction_bias"):
                table.normal_(0, 0.1)
    return made


def teacher(**changes: Any) -> Teacher:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer(),
        eos_token=tiny.CONTROL[0],
        bos_token=tiny.CONTROL[1],
        pad_token=tiny.CONTROL[0],
        chat_template=tiny.TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    resource = Resource("teacher", "tiny", "file:tiny", "0" * 64)
    return Teacher("tiny", resource, model(**changes), wrapped)
