"""Two token sequences of the same text, aligned by its bytes.

What two tokenizers share of a text is where both have a boundary. Between two shared boundaries
neither can be told what the other's single token says: that stretch is a span.

Tokens without text (a beginning of text, a turn's header) stand for no bytes, take part in no span,
and so cannot shift one against another: one more of them on one side changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from overproof.core.artifact import Json
from overproof.teacher.tokens import byte_alphabet, token_bytes

END = b"\xff"  # stands for the end of an answer, whatever token that is; no text has this byte
_ALPHABET = byte_alphabet()


class Span(NamedTuple):
    """A stretch of the text between two shared boundaries, and its tokens on either side.

    Attributes:
        ours, theirs: places of the tokens, those without text left out; one at least.
    """

    ours: tuple[int, ...]
    theirs: tuple[int, ...]


def spans(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[Span]:
    """The least stretches of a text whose boundaries both sides have, in its order.

    Where the two texts differ, as behind a tokenizer that normalises or an answer that was cut off
    inside a character, the spans end before the first byte that is another.

    Args:
        ours, theirs: bytes of each token.
    """
    same = _same(b"".join(ours), b"".join(theirs))
    ends_a, place_a = _ends(ours)
    ends_b, place_b = _ends(theirs)
    shared = np.intersect1d(ends_a, ends_b, assume_unique=True)
    shared = shared[shared <= same]
    stops = zip(np.searchsorted(ends_a, shared), np.searchsorted(ends_b, shared), strict=True)
    found, a, b = list[Span](), 0, 0
    for stop_a, stop_b in stops:
        found.append(Span(tuple(place_a[a : stop_a + 1]), tuple(place_b[b : stop_b + 1])))
        a, b = int(stop_a) + 1, int(stop_b) + 1
    return found


def _ends(texts: Sequence[bytes]) -> tuple[NDArray[np.int64], list[int]]:
    """Where each token with text ends, in bytes; and its place."""
    places = [place for place, text in enumerate(texts) if text]
    sizes = np.array([len(texts[place]) for place in places], np.int64)
    return np.cumsum(sizes), places


def _same(ours: bytes, theirs: bytes) -> int:
    """How many bytes are equal at the beginning."""
    if ours == theirs:
        return len(ours)
    size = min(len(ours), len(theirs))
    a, b = np.frombuffer(ours[:size], np.uint8), np.frombuffer(theirs[:size], np.uint8)
    different = np.flatnonzero(a != b)
    return int(different[0]) if len(different) else size


@dataclass(frozen=True)
class Side:
    """A tokenizer as an alignment sees it.

    Attributes:
        tokenizer: byte-level BPE. state: what it is made of, see `tokens.byte_level`.
        ends: its tokens that end an answer, the one that is written first.
        rows: of the model's output; tokens or more.
    """

    tokenizer: Tokenizer
    state: Json
    ends: tuple[int, ...]
    rows: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, state: Json, ends: Iterable[int], rows: int = 0) -> Self:
        """Its own copy of the tokenizer, that reads a control token's name as text."""
        own = Tokenizer.from_str(tokenizer.to_str())
        own.encode_special_tokens = True
        own.no_truncation()
        own.no_padding()
        return cls(own, state, tuple(ends), max(rows, own.get_vocab_size()))

    @cached_property
    def bytes_of(self) -> dict[int, bytes]:
        """What each token stands for; see `tokens.token_bytes`."""
        return token_bytes(self.state)

    def texts(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token, `END` for one that ends an answer."""
        return [END if one in self.ends else self.bytes_of.get(one, b"") for one in tokens]

    def text(self, tokens: Sequence[int]) -> bytes:
        """The bytes of them all, without ends."""
        return b"".join(self.bytes_of.get(one, b"") for one in tokens if one not in self.ends)

    def cut(self, text: str) -> list[int]:
        """A text as this tokenizer cuts it."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def pieces(self, raw: bytes) -> tuple[int, ...]:
        """Bytes in its tokens by its merges alone; none if it has no token for one of them."""
        letters = "".join(_ALPHABET[byte] for byte in raw)
        found = tuple(piece.id for piece in self.tokenizer.model.tokenize(letters))
        return found if sum(len(self.bytes_of[one]) for one in found) == len(raw) else ()
