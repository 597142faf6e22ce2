"""A tiny random student with a trimmed tokenizer, and GGUF files of it; made once a session."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from overproof.core import artifact
from overproof.core.artifact import Artifact, Work
from overproof.student.vocabulary import trim
from overproof.teacher.files import identify

TEACHER = "builtin:smollm2-135m-instruct"
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOKENS = 1_500
CONVERSATIONS = tuple(
    f"<|im_start|>system\nYou help customers.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
    f"<|im_start|>assistant\n{answer}<|im_end|>"
    for question, answer in (
        ("Where is my parcel? It was due on Monday.", "I am sorry. Please give me its number."),
        ("I was charged twice for 2024-03.", "That's not right; I'll refund €12.50 to you."),
        ("Der Café-Gutschein läuft ab 😀", "We can extend it by    30 days."),
    )
)


@cache
def teacher_tokenizer() -> PreTrainedTokenizerFast:
    path, _ = identify(TEACHER)
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def tokenizer() -> Tokenizer:
    """Trimmed to the most frequent tokens, which byte-level BPE numbers first."""
    whole = teacher_tokenizer().backend_tokenizer
    mass = 1.0 / (1.0 + np.arange(whole.get_vocab_size()))
    state = json.loads(trim(whole, mass, TOKENS, CONTROL).tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    free = iter(sorted(set(range(TOKENS)) - set(vocabulary.values())))
    for row in state["added_tokens"]:
        row["id"] = vocabulary.setdefault(row["content"], next(free, None))
    return Tokenizer.from_str(json.dumps(state))


def save(folder: Path, **changes: object) -> Path:
    """A random Llama whose distributions are as sharp as a trained one's."""
    small = tokenizer()
    ids = {text: small.token_to_id(text) for text in CONTROL}
    shape = {
        "vocab_size": TOKENS,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_theta": 100_000.0, "rope_type": "default"},
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|im_end|>"],
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes))).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "norm" in name:
                values.uniform_(0.5, 1.5)
            elif "bias" in name:
                values.normal_(0, 0.3)
            else:
                values.normal_(0, 0.12)
                if "embed" in name or "lm_head" in name:
                    # Tokens of unequal length: few near ties, as in a trained model.
                    values *= (0.6 * torch.randn(len(values), 1)).exp()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=small,
        **{f"{use}_token": CONTROL[2] for use in ("eos", "pad")},
        bos_token=CONTROL[1],
        chat_template=teacher_tokenizer().chat_template,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    return folder


def load(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy(model: LlamaForCausalLM, prompt: list[int], count: int, never: list[int]) -> list[int]:
    """The most likely tokens one after another, computed anew from the whole prefix each time."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            logits = model(torch.tensor([tokens])).logits[0, -1]
            logits[never] = -torch.inf
            tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def student(store: Path, **changes: object) -> Artifact:
    def make(work: Work) -> dict[str, object]:
        save(work.folder, **changes)
        return {}

    return artifact.build(store, "student", inputs={}, config={}, make=make)


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_bytes()) | changes))
