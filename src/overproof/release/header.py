"""What a GGUF file's header tells: its tokenizer, and how its makers advise to sample."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overproof.core.errors import StageError

PLAIN = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the most likely token each time.
        top_k: draw from this many most likely tokens; 0 means from all.
        top_p: draw from the tokens that reach this mass.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


@dataclass(frozen=True)
class Header:
    """The tokenizer in a GGUF header, and how its makers advise to sample.

    Attributes:
        tokens: text of each token by id.
        end: id of the end of a turn.
        letter: id of a token of plain letters.
        first: text of the token that begins a text, where there is one.
        adds_first: whether the engine puts it there.
        sampling: `general.sampling.*`; the most likely token each time where the file is silent.
    """

    tokens: tuple[str, ...]
    end: int
    letter: int
    first: str | None
    adds_first: bool
    sampling: Sampling


def read_header(file: Path) -> Header:
    """Read the tokenizer from a GGUF file.

    Raises:
        StageError: no GGUF file, or one without tokenizer or end of turn.
    """
    from gguf import GGUFReader, Keys

    try:
        reader = GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise StageError(f"{file} cannot be read as GGUF", details=[str(error)]) from error

    def value(name: str) -> Any:
        field = reader.get_field(name)
        return None if field is None else field.contents()

    tokens, end = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.eos_token_id")
    first = value("tokenizer.ggml.bos_token_id")
    if not tokens or end is None:
        raise StageError(
            f"{file} carries no tokenizer, or none that ends a turn", details=[f"end: {end}"]
        )
    letter = next((number for number, token in enumerate(tokens) if PLAIN.fullmatch(token)), end)
    text = None if first is None else str(tokens[first])
    return Header(
        tuple(tokens),
        int(end),
        int(letter),
        text,
        bool(value("tokenizer.ggml.add_bos_token")),
        Sampling(
            float(value(Keys.General.SAMPLING_TEMP) or 0.0),
            int(value(Keys.General.SAMPLING_TOP_K) or 0),
            float(value(Keys.General.SAMPLING_TOP_P) or 1.0),
        ),
    )
