"""What a teacher's tokenizer must be for its vocabulary to be trimmed, and what it is made of."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

from tokenizers import Tokenizer

from overproof.core.artifact import Json
from overproof.core.errors import StageError

POST_PROCESSORS = {"ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing"}


def byte_level(tokenizer: Any) -> Json:
    """The state of a byte-level BPE tokenizer, as `tokenizer.json` holds it.

    Every other kind is refused: a student spells what it lacks in bytes, so the text of a token
    must be the bytes that it stands for, and merges alone must decide how a text is cut.

    Raises:
        StageError: another kind, or one with a part that is not known here.
    """
    other = "is no byte-level BPE"
    if not isinstance(tokenizer, Tokenizer):
        raise _unfit(other, f"{type(tokenizer).__name__}, not of the library `tokenizers`")
    state: Json = json.loads(tokenizer.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise _unfit(other, f"model {model['type']}")
    for part in ("pre_tokenizer", "decoder"):
        kinds = [step["type"] for step in steps(state[part])]
        if "ByteLevel" not in kinds:
            raise _unfit(other, f"{part} {', '.join(kinds) or 'none'}, wanted ByteLevel")
    for option in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[option]:
            raise _unfit(other, f"{option} {model[option]!r}, wanted none")
    if model["dropout"]:
        raise _unfit("cuts text at random", f"dropout {model['dropout']}, wanted none")
    strange = {step["type"] for step in steps(state["post_processor"])} - POST_PROCESSORS
    if strange:
        raise _unfit("ends with an unknown step", f"post-processor {', '.join(sorted(strange))}")
    texts = dict[int, str]()
    for text, number in token_ids(state).items():
        if texts.setdefault(number, text) != text:
            raise _unfit("gives two tokens one id", f"{number} for {texts[number]!r} and {text!r}")
    unknown = [number for number in written_ids(state) if number not in texts]
    if unknown:
        raise _unfit("writes ids that are no tokens", f"{unknown} in its post-processor")
    return state


def _unfit(what: str, got: str) -> StageError:
    return StageError(
        f"the teacher's tokenizer {what}, so its vocabulary cannot be trimmed",
        details=[f"got {got}"],
        hint="use a teacher with a byte-level BPE tokenizer, such as Llama 3 or SmolLM2",
    )


def steps(part: Json | None) -> list[Json]:
    """The parts of a part of a tokenizer, where it is a sequence of them; else itself."""
    if part is None:
        return []
    for name in ("pretokenizers", "processors", "decoders"):
        if name in part:
            return [step for inner in part[name] for step in steps(inner)]
    return [part]


def token_ids(state: Json) -> dict[str, int]:
    """Id of every token of a tokenizer, added ones included."""
    vocabulary: dict[str, int] = state["model"]["vocab"]
    return vocabulary | {row["content"]: row["id"] for row in state["added_tokens"]}


def other_tokens(wanted: Json, got: Json) -> list[str]:
    """Tokens of a tokenizer that another lacks, or has under another id.

    Args:
        wanted, got: their states, see `byte_level`.
    """
    ids = token_ids(got)
    return [text for text, number in token_ids(wanted).items() if ids.get(text) != number]


def written_ids(state: Json) -> list[int]:
    """Ids of the tokens that the post-processor puts around a text."""
    found: list[int] = []
    for step in steps(state["post_processor"]):
        for row in step.get("special_tokens", {}).values():
            found += row["ids"]
        found += [step[side][1] for side in ("cls", "sep") if side in step]
    return found


def token_bytes(state: Json) -> dict[int, bytes]:
    """The bytes that each token stands for in a text, by its id; none for a control token."""
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    added = {row["content"]: row["special"] for row in state["added_tokens"]}
    found = dict[int, bytes]()
    for text, number in token_ids(state).items():
        if text in added or not set(text) <= byte_of.keys():
            found[number] = b"" if added.get(text, False) else text.encode()
        else:
            found[number] = bytes(byte_of[character] for character in text)
    return found


def byte_alphabet() -> list[str]:
    """The character that stands for each byte (GPT-2's table): itself if it can be printed."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = count(256)
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
