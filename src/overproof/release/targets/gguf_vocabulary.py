"""A byte-level BPE tokenizer in a GGUF header, where llama.cpp cuts text as `tokenizers` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from overproof.core.errors import StageError
from overproof.teacher.tokens import steps

Json = dict[str, Any]

# The split pattern of Llama 3's tokenizer.json; llama.cpp's `llama-bpe` is the same.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = ["ByteLevel", {"add_prefix_space": False, "use_regex": True}]
# How a text is cut before merging, and the name of that in llama.cpp (llama-vocab.cpp,
# `tokenizer_pre`): found by what the tokenizer does, not by what the model is called.
CUTS: tuple[tuple[str, list[list[Any]]], ...] = (
    ("gpt-2", [GPT2]),
    ("smollm", [["Digits", {"individual_digits": True}], GPT2]),
    (
        "llama-bpe",
        [
            [
                "Split",
                {"pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False},
            ],
            ["ByteLevel", {"add_prefix_space": False, "use_regex": False}],
        ],
    ),
)
IGNORES_MERGES = {
    "llama-bpe"
}  # a word that is a token is taken whole; llama.cpp ties it to the cut


def add(writer: GGUFWriter, model: Path, config: Any) -> None:
    """Write tokens, merges, control tokens and chat template into the header.

    1. Refuse a tokenizer that llama.cpp would not follow to the token.
    2. List the tokens by id with their types; ids without a token become unused ones.
    3. Name the control tokens by the ids of the model's configuration.

    Raises:
        StageError: no tokenizer, one of another kind, or an id beyond the vocabulary.
    """
    state = _read_json(model / "tokenizer.json")
    # 1.
    cut = cut_of(state)
    # 2.
    tokens, types = _tokens(state, config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([_merge(row) for row in state["model"]["merges"]])
    # 3.
    for kind, number in _control(model, config).items():
        getattr(writer, f"add_{kind}_token_id")(number)
    writer.add_add_bos_token(_adds_first(state))
    writer.add_add_space_prefix(False)
    template = chat_template(model)
    if template is not None:
        writer.add_chat_template(template)


def cut_of(state: Json) -> str:
    """llama.cpp's name for the way in which a tokenizer cuts text.

    Args:
        state: the content of `tokenizer.json`.

    Raises:
        StageError: llama.cpp has no such way, or another part of the tokenizer it lacks.
    """
    if state["model"]["type"] != "BPE" or state["model"].get("byte_fallback"):
        raise _unfit(f"model {state['model']['type']}", "byte-level BPE")
    if state["normalizer"] is not None:
        raise _unfit(f"normalizer {state['normalizer'].get('type')}", "none")
    for row in state["added_tokens"]:
        flags = [name for name in ("single_word", "lstrip", "rstrip") if row.get(name)]
        if flags:
            raise _unfit(f"token {row['content']!r} with {flags[0]}", "plain added tokens")
    found = steps(state["pre_tokenizer"])
    for name, wanted in CUTS:
        if _matches(found, wanted):
            if bool(state["model"].get("ignore_merges")) != (name in IGNORES_MERGES):
                break
            return name
    raise _unfit(
        f"pre-tokenizer {json.dumps(state['pre_tokenizer'])[:200]}",
        "one of " + ", ".join(name for name, _ in CUTS),
    )


def _unfit(got: str, wanted: str) -> StageError:
    return StageError(
        "the tokenizer cannot be exported to GGUF: llama.cpp would cut text differently",
        details=[f"got {got}, wanted {wanted}"],
        hint="choose a teacher with the tokenizer of GPT-2, SmolLM2 or Llama 3",
    )


def _matches(found: list[Json], wanted: list[list[Any]]) -> bool:
    return len(found) == len(wanted) and all(
        step["type"] == kind and all(step.get(key) == value for key, value in fields.items())
        for step, (kind, fields) in zip(found, wanted, strict=True)
    )


def _tokens(state: Json, size: int) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [int(TokenType.UNUSED)] * size
    rows = [(text, number, TokenType.NORMAL) for text, number in state["model"]["vocab"].items()]
    rows += [
        (row["content"], row["id"], TokenType.CONTROL if row["special"] else TokenType.USER_DEFINED)
        for row in state["added_tokens"]
    ]
    for text, number, kind in rows:
        if number >= size:
            raise StageError(
                "the tokenizer has more tokens than the model",
                details=[f"token {text!r} has id {number}, the model {size} rows"],
            )
        if types[number] != TokenType.UNUSED and tokens[number] != text:
            raise StageError(
                "two tokens of the tokenizer have one id",
                details=[f"id {number}: {tokens[number]!r} and {text!r}"],
                hint="this is an error in the trimmed tokenizer; please report it",
            )
        tokens[number], types[number] = text, int(kind)
    return tokens, types


def _merge(row: str | list[str]) -> str:
    return row if isinstance(row, str) else " ".join(row)


def _adds_first(state: Json) -> bool:
    """Whether the tokenizer puts a control token before a text."""
    steps = state["post_processor"] or {}
    return any(
        step.get("type") == "TemplateProcessing" and "SpecialToken" in step["single"][0]
        for step in steps.get("processors", [steps])
    )


def _control(model: Path, config: Any) -> dict[str, int]:
    """Ids of the control tokens; the end of an answer is what generation stops at."""
    generation, found = generation_config(model), {}
    for name in ("bos", "eos", "pad", "unk"):
        key = f"{name}_token_id"
        given: Any = generation.get(key, getattr(config, key, None))
        number = given[0] if isinstance(given, list) and given else given
        if not isinstance(number, int):
            continue
        if not 0 <= number < config.vocab_size:
            raise StageError(
                f"{name}_token_id is {number}, beyond the vocabulary of {config.vocab_size}"
            )
        found[name] = number
    return found


def generation_config(model: Path) -> Json:
    """How the model's makers advise to generate, empty where they say nothing."""
    file = model / "generation_config.json"
    return _read_json(file) if file.is_file() else {}


def chat_template(model: Path) -> str | None:
    """The chat template that is saved with a tokenizer."""
    file = model / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    settings = model / "tokenizer_config.json"
    found = _read_json(settings).get("chat_template") if settings.is_file() else None
    return found if isinstance(found, str) else None


def _read_json(file: Path) -> Json:
    try:
        found: Json = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise StageError(f"cannot read {file}", details=[str(error)]) from error
    return found
