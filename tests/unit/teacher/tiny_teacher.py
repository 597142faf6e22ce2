"""A random Llama of a few thousand parameters with its own small tokenizer, made in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from overproof.core.artifact import Resource
from overproof.core.console import Meter
from overproof.teacher.example import Example
from overproof.teacher.local import Teacher
from overproof.teacher.origins import Loader

CONTROL = ("<|end|>", "<|start|>")
TOKENS = 360
TEXT = (
    "Where is my parcel? It was due on Monday and has not arrived.",
    "I was charged twice for the same order; please refund the second payment.",
    "Please give me the number of your order and I will look for the parcel.",
    "The roaming package ends on Monday, and the next one starts on Tuesday.",
)
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@cache
def tokenizer() -> Tokenizer:
    return _trained(TEXT, TOKENS, CONTROL)


def _trained(texts: Sequence[str], size: int, control: Sequence[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        show_progress=False,
        special_tokens=list(control),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    made.train_from_iterator(texts, trainer)
    return made


def model(*, layers: int = 3, vocabulary: int = TOKENS, seed: int = 0, **changes: Any) -> Any:
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    made = LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()
    with torch.no_grad():
        for name, values in made.named_parameters():
            if "norm" not in name:
                values.normal_(0, 0.15)
    return made


def teacher(**changes: Any) -> Teacher:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        eos_token=CONTROL[0],
        bos_token=CONTROL[1],
        pad_token=CONTROL[0],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    resource = Resource("teacher", "tiny", "file:tiny", "0" * 64)
    return Teacher("tiny", resource, model(**changes), wrapped)


OTHER_CONTROL = ("<s>", "</s>", "<user>", "<assistant>")
OTHER_TEXT = (
    "Your parcel arrives on Monday 12 May 2026, order 123456, or on Tuesday 13 May 2026.",
    "I am sorry; the order was charged twice. We refund the second payment of 1234 euro on Monday.",
    "naïve café Zürich 日本 😀, where the parcel arrived and the payment arrived.",
)
OTHER_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<assistant>' if m['role'] == 'assistant' else "
    "'<user>' }}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@cache
def other_tokenizer(size: int = 420) -> Tokenizer:
    """One that cuts otherwise: it joins digits, knows other words, and has a beginning of text."""
    return _trained(OTHER_TEXT * 3, size, OTHER_CONTROL)


def other(size: int = 420, **changes: Any) -> Teacher:
    """A model with that tokenizer."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=other_tokenizer(size),
        **dict(zip(("bos_token", "eos_token", "pad_token"), ("<s>", "</s>", "</s>"), strict=True)),
        chat_template=OTHER_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    resource = Resource("base", "other", "file:other", "7" * 64)
    made = model(vocabulary=size, **({"seed": 4} | ids | changes))
    return Teacher("other", resource, made, wrapped)


def save_other(folder: Path, **changes: Any) -> Path:
    made = other(**changes)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def brief(**changes: Any) -> Teacher:
    """One whose answers end: sixty of its tokens are an end."""
    made = teacher(**changes)
    made.model.generation_config.eos_token_id = [0, *range(200, 259)]
    return made


def loads(made: Teacher) -> Loader:
    """What loads it, whichever is asked for."""
    return Loader(lambda _: made)


def save(folder: Path, **changes: Any) -> Path:
    made = teacher(**changes)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def examples(
    count: int, *, seed: int = 0, vocabulary: int = TOKENS, most: int = 9
) -> list[Example]:
    """Random conversations, no control tokens among them."""
    rng = np.random.default_rng(seed)

    def some() -> tuple[int, ...]:
        return tuple(rng.integers(2, vocabulary, rng.integers(1, most)).tolist())

    return [Example(f"key-{index}", some(), some()) for index in range(count)]


def meter(total: int = 1) -> Meter:
    return Meter("test", total, "units", None)


def alone(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Logits of one sequence by transformers itself, (T, V)."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([list(tokens)])).logits[0]
        return logits
