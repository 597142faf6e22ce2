"""A remote teacher's text in the tokens of a model here, and its likeliest tokens as signals.

Shape suffixes: N positions, K tokens of a position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from overproof.core.errors import StageError
from overproof.teacher.kept.top_k import TopK, TopSignals
from overproof.teacher.local import Teacher
from overproof.teacher.remote.reply import Place, Reply
from overproof.teacher.tokens import byte_alphabet, token_ids

STOP = "stop"  # an answer that ended by itself
LEAST_TAIL = 1e-7  # of the mass; what rounding leaves where the likeliest tokens have all of it
# A program that gives text in whole characters, as llama.cpp does, gives one place for a character
# of several tokens: what was likely for its first byte is lost.
MOST_SPELLED_BYTES = 4


class Heard(NamedTuple):
    """An answer in tokens of the model here.

    Attributes:
        signals: where they were asked for, a row a token; see `Hearing.heard`.
    """

    tokens: list[int]
    signals: TopSignals | None


@dataclass(frozen=True)
class Row:
    """The likeliest tokens at a position; none: the text alone says what comes."""

    ids: list[int]
    log_probs: list[float]


class Hearing:
    """Writes answers in the tokens of a model here.

    Args:
        base: the model. kept: how many likely tokens to keep a position; None: the text alone.
    """

    def __init__(self, base: Teacher, kept: TopK | None) -> None:
        self.kept = kept
        self.end = base.stop_ids[0]
        self.tokenizer = Tokenizer.from_str(base.tokenizer.backend_tokenizer.to_str())
        self.tokenizer.encode_special_tokens = True  # a text that spells a control token is text
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.ids = _by_bytes(base) if kept else {}

    def cut(self, text: str) -> list[int]:
        """A text as the model here cuts it."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def heard(self, reply: Reply) -> Heard:
        """An answer, with its end if it has one.

        With signals the tokens are the service's own. A position without a distribution has one
        on its own token: the end, where the service gives none for it, and inside a character
        that takes several tokens.

        Raises:
            StageError: the service's tokens are not those of the model here.
        """
        ended = reply.finish == STOP
        if self.kept is None:
            return Heard([*self.cut(reply.text), *([self.end] if ended else [])], None)
        places = list(reply.places or ())
        end = Row([], [])
        if ended and places and not places[-1][0]:  # the control token that ends it has no text
            end = self._row(places.pop())
        self._demand_text(reply, places)
        tokens, rows = list[int](), list[Row]()
        for place in places:
            own = self._own(place[0])
            tokens += own
            rows += [self._row(place)] if len(own) == 1 else [Row([], [])] * len(own)
        if ended:
            tokens.append(self.end)
            rows.append(end)
        return Heard(tokens, self._signals(tokens, rows))

    def _demand_text(self, reply: Reply, places: Sequence[Place]) -> None:
        said = b"".join(bytes.fromhex(token) for token, _ in places).decode("utf-8", "replace")
        if said.strip() != reply.text.strip():
            raise StageError(
                "the endpoint's log-probabilities are not those of its answer",
                details=[f"tokens of {said[:60]!r}, answer {reply.text[:60]!r}"],
                hint="take signals.kind `text`",
            )

    def _own(self, token: str) -> list[int]:
        """The token here of the same bytes; several for a character that takes several.

        Raises:
            StageError: there is none.
        """
        known = self.ids.get(token)
        if known is not None:
            return [known]
        raw = bytes.fromhex(token)
        text = raw.decode("utf-8", "replace")
        if len(text) == 1 and 1 < len(raw) <= MOST_SPELLED_BYTES:
            return self.cut(text)
        raise _other_tokens(raw)

    def _row(self, place: Place) -> Row:
        assert self.kept is not None
        found = dict[int, float]()
        for token, log_prob in place[1][: self.kept.top]:
            if token and token not in self.ids:
                raise _other_tokens(bytes.fromhex(token))
            # Some services give control tokens no text: what can be likely of them is the end.
            found.setdefault(self.ids[token] if token else self.end, min(log_prob, 0.0))
        ranked = sorted(found.items(), key=lambda pair: -pair[1])
        return Row([number for number, _ in ranked], [log_prob for _, log_prob in ranked])

    def _signals(self, tokens: Sequence[int], rows: Sequence[Row]) -> TopSignals:
        assert self.kept is not None
        signals = self.kept.empty(len(tokens))
        for number, (token, row) in enumerate(zip(tokens, rows, strict=True)):
            ids, log_probs = (row.ids, row.log_probs) if row.ids else ([token], [0.0])
            size = len(ids)
            signals.ids_NK[number, :size] = torch.tensor(ids)
            signals.log_probs_NK[number] = -math.inf  # filler has no mass
            signals.log_probs_NK[number, :size] = torch.tensor(log_probs)
            mass = math.fsum(map(math.exp, log_probs))
            signals.tail_N[number] = math.log(max(1.0 - mass, LEAST_TAIL))
        return signals


def has_distribution(signals: TopSignals) -> torch.Tensor:
    """Which positions, (N,), have one of the service, and not merely the token that was said."""
    return signals.log_probs_NK[:, 1:2].isfinite().any(-1)


def _by_bytes(base: Teacher) -> dict[str, int]:
    """The id of each token by its bytes in hex; what two tokens share belongs to none."""
    state = base.tokenizer_state
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    added = {row["content"] for row in state["added_tokens"]}
    found, twice = dict[str, int](), set[str]()
    for text, number in token_ids(state).items():
        plain = text in added or not set(text) <= byte_of.keys()
        raw = text.encode() if plain else bytes(byte_of[character] for character in text)
        if found.setdefault(raw.hex(), number) != number:
            twice.add(raw.hex())
    return {raw: number for raw, number in found.items() if raw not in twice}


def _other_tokens(raw: bytes) -> StageError:
    return StageError(
        "the endpoint's tokens are not those of student.base",
        details=[f"{raw.decode('utf-8', 'replace')!r} ({raw.hex()}) is no single token there"],
        hint="take signals.kind `text`, or a base with the teacher's own tokenizer",
    )
