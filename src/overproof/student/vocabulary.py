"""Trimming a byte-level BPE vocabulary to a task, so that any text can still be written.

A head of 49,152 tokens costs about twice the training step of one of 8,192 in a student of 30M
parameters, and a tenth of its memory.

What holds of the trimmed tokenizer, of any byte-level BPE:

1. All 256 bytes are kept, so every text has an encoding, and no byte of it is lost.
2. A text that the teacher cuts into kept tokens only, and loses no byte of, is cut into the same
   tokens. Each token is kept with all that BPE passes through on its way to it, in the order of
   the teacher's merges: what the teacher merges in such a text can be merged here too, and
   nothing else comes before it.
3. So whatever kept token the teacher can cut a text into, the student can.
4. Control tokens are kept whole: all that are marked as special, named in the teacher's
   configuration, or written by the post-processor.

What does not hold: a text with a token that is not kept may be cut into other tokens than
`Vocabulary.pieces` gives, one teacher token after another. The missing token no longer holds its
bytes back from merging with their neighbours: the teacher's `ab|c` is `a|b|c` in pieces, and
`a|bc` in the tokenizer's cut, where `bc` is kept and `ab` is not. Both decode to the same text.

Shape suffixes: U teacher vocabulary, V student vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from overproof.core.artifact import Json
from overproof.core.errors import StageError, UsageError
from overproof.teacher.tokens import byte_alphabet, byte_level, token_ids, written_ids

Ints = NDArray[np.int64]
ABSENT = -1
TOKENIZER, MAP, TEXTS = "tokenizer.json", "vocabulary.npz", "teacher-tokens.json"


@dataclass(frozen=True)
class Vocabulary:
    """The student's vocabulary and how it hangs together with the teacher's.

    Attributes:
        tokenizer: the trimmed tokenizer.
        teacher_ids_V: the teacher's id of each student token; -1 for a byte that it lacks.
        student_ids_U: for each teacher token the student token that its text begins with: the
            same token where it is kept, else the first piece of its encoding. The teacher's
            distribution mapped this way is its distribution over what the student says next.
        kept_U: whether the teacher's token is kept whole.
        texts: the teacher's token texts by id, in the byte alphabet.
    """

    tokenizer: Tokenizer
    teacher_ids_V: Ints
    student_ids_U: Ints
    kept_U: NDArray[np.bool_]
    texts: Mapping[int, str] = field(repr=False)

    @property
    def size(self) -> int:
        """Number of student tokens."""
        return len(self.teacher_ids_V)

    def whole(self, token: int) -> int | None:
        """The student's id of a teacher token that is kept whole, None for any other."""
        known = 0 <= token < len(self.kept_U) and self.kept_U[token]
        return int(self.student_ids_U[token]) if known else None

    def pieces(self, token: int) -> tuple[int, ...]:
        """A teacher token in student tokens: itself, or its spelling."""
        if self.kept_U[token] or token not in self.texts:
            return (int(self.student_ids_U[token]),)
        return _spelling(self.tokenizer, self.texts[token])

    def spell(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """Teacher tokens in student tokens, one after another."""
        return tuple(piece for token in tokens for piece in self.pieces(token))

    def ends(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """The student's ids of those teacher tokens that are kept whole, as all ends are."""
        return tuple(own for own in map(self.whole, tokens) if own is not None)

    def save(self, folder: Path) -> None:
        """Write the map between the vocabularies, and the teacher's token texts."""
        np.savez(
            folder / MAP,
            teacher_ids=self.teacher_ids_V,
            student_ids=self.student_ids_U,
            kept=self.kept_U,
        )
        texts = json.dumps(self.texts, ensure_ascii=False, sort_keys=True)
        (folder / TEXTS).write_text(texts, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote, and the tokenizer beside it."""
        arrays = np.load(folder / MAP)
        texts = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
        return cls(
            Tokenizer.from_file(str(folder / TOKENIZER)),
            arrays["teacher_ids"],
            arrays["student_ids"],
            arrays["kept"],
            {int(number): text for number, text in texts.items()},
        )


def trim(
    tokenizer: Tokenizer, mass_U: NDArray[np.float64], size: int, keep: Iterable[str]
) -> Vocabulary:
    """Keep the tokens that carry the most of the teacher's probability.

    1. Keep the 256 bytes and the control tokens: those in `keep`, those that the tokenizer marks
       as special, and those that its post-processor writes.
    2. Add tokens by falling mass, each with the tokens that it is merged from, until full.
    3. Number them in the teacher's order; keep the merges whose parts and result are all kept.
    4. Map every teacher token to the student token that its text begins with.

    Args:
        tokenizer: the teacher's, byte-level BPE.
        mass_U: the probability that the teacher gives each token on the task, any scale.
        size: tokens wanted.
        keep: tokens that must stay (end of turn, start of turn).

    Raises:
        StageError: the tokenizer is no byte-level BPE, or lacks a token of `keep`.
        UsageError: the size has no room for step 1.
    """
    state = byte_level(tokenizer)
    ids = token_ids(state)
    texts = {number: text for text, number in ids.items()}
    # 1. and 2.
    kept = _choose(state, texts, mass_U, size, keep)
    # 3.
    order = sorted(kept, key=lambda text: ids.get(text, len(ids)))
    student = _rebuild(state, order, texts)
    teacher_ids = np.array([ids.get(text, ABSENT) for text in order])
    # 4.
    kept_U = np.zeros(max(len(mass_U), max(texts) + 1), np.bool_)
    kept_U[teacher_ids[teacher_ids != ABSENT]] = True
    return Vocabulary(
        student, teacher_ids, _first_pieces(student, texts, len(mass_U)), kept_U, texts
    )


def _choose(
    state: Json,
    texts: Mapping[int, str],
    mass_U: NDArray[np.float64],
    size: int,
    keep: Iterable[str],
) -> dict[str, None]:
    """Steps 1 and 2 of `trim`: the texts of the student's tokens."""
    # 1.
    kept = _fixed(state, size, keep)
    # 2.
    ranks = _ranks(state)
    for number in np.argsort(-mass_U, kind="stable"):
        wanted = texts.get(int(number))
        if wanted is None or wanted in kept:
            continue
        new = [part for part in _derivation(wanted, ranks) if part not in kept]
        if len(kept) + len(new) > size:
            break
        kept |= dict.fromkeys(new)
    return kept


def demand_room(state: Json, size: int, keep: Iterable[str]) -> None:
    """Refuse, before any work, what `trim` would refuse.

    Args:
        state: of the teacher's tokenizer, see `byte_level`; the others are those of `trim`.

    Raises:
        StageError: the tokenizer lacks a token of `keep`.
        UsageError: the size has no room for bytes and control tokens.
    """
    _fixed(state, size, keep)


def _fixed(state: Json, size: int, keep: Iterable[str]) -> dict[str, None]:
    """Step 1 of `trim`: what every student has."""
    texts = {number: text for text, number in token_ids(state).items()}
    ranks = _ranks(state)
    control = {row["content"] for row in state["added_tokens"] if row["special"]}
    control |= {*keep, *(texts[number] for number in written_ids(state))}
    missing = sorted(control - set(texts.values()))
    if missing:
        raise StageError("the teacher's tokenizer lacks its own control tokens", details=missing)
    kept = dict.fromkeys(sorted(_BYTES))
    for text in control:
        kept |= dict.fromkeys(_derivation(text, ranks))
    if size < len(kept):
        raise UsageError(
            f"student.vocabulary is {size}", details=[f"bytes and control tokens need {len(kept)}"]
        )
    return kept


def _ranks(state: Json) -> dict[tuple[str, str], int]:
    """The place of each merge in the order in which BPE prefers them."""
    return {(left, right): rank for rank, (left, right) in enumerate(state["model"]["merges"])}


def _derivation(text: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The token, after every token that BPE makes on its way from the bytes to it.

    Merges are replayed, not looked up: a token may be the result of several, and the one that
    is applied depends on those before it. A token that BPE does not arrive at stands alone: an
    added one, found in a text before it is cut; one that is only ever a whole word, where the
    tokenizer takes those as they are (`ignore_merges`); or one that no text is cut into.
    """
    parts, made = list(text), list[str]()
    while len(parts) > 1:
        pairs = [
            (ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks
        ]
        if not pairs:
            return [text]
        _, place = min(pairs)
        made.append(parts[place] + parts[place + 1])
        parts[place : place + 2] = made[-1:]
    return made or [text]


def _rebuild(state: Json, order: list[str], texts: Mapping[int, str]) -> Tokenizer:
    """The tokenizer with these tokens, numbered in this order."""
    number = {text: index for index, text in enumerate(order)}
    model = state["model"] | {
        # Control tokens stand here too: the library numbers added tokens that the model's own
        # vocabulary lacks itself, whatever id their row gives.
        "vocab": number,
        "merges": [
            [left, right]
            for left, right in state["model"]["merges"]
            if left in number and right in number and left + right in number
        ],
        "unk_token": None,
    }
    changed = {
        "model": model,
        "added_tokens": [
            row | {"id": number[row["content"]]}
            for row in state["added_tokens"]
            if row["content"] in number
        ],
        "post_processor": _renumbered(
            state["post_processor"], {old: number.get(text) for old, text in texts.items()}
        ),
        "padding": None,  # set by each caller; the teacher's would hold the teacher's ids
        "truncation": None,
    }
    return Tokenizer.from_str(json.dumps(state | changed))


def _renumbered(part: Json | None, new: Mapping[int, int | None]) -> Json | None:
    """A post-processor with the student's ids for the teacher's; `written_ids` lists them."""
    if part is None:
        return None
    if "processors" in part:
        return part | {"processors": [_renumbered(step, new) for step in part["processors"]]}
    if "special_tokens" in part:
        rows = {
            name: row | {"ids": [new[old] for old in row["ids"]]}
            for name, row in part["special_tokens"].items()
        }
        return part | {"special_tokens": rows}
    sides = [side for side in ("cls", "sep") if side in part]
    return part | {side: [part[side][0], new[part[side][1]]] for side in sides}


def _first_pieces(student: Tokenizer, texts: Mapping[int, str], size: int) -> Ints:
    """For each teacher token the first student token of its text.

    Token texts are in the byte alphabet already: the BPE model is asked, not the pipeline. Many
    models have more rows than tokens, to round the matrix up; those have no text, no row of
    their own in the student, and next to no mass: it goes to token 0.
    """
    vocabulary = student.get_vocab()
    found = np.zeros(max(max(texts) + 1, size), np.int64)
    for number, text in texts.items():
        known = vocabulary.get(text)
        found[number] = _spelling(student, text)[0] if known is None else known
    return found


def _spelling(student: Tokenizer, text: str) -> tuple[int, ...]:
    """A teacher token that is not kept, in student tokens.

    A control token's text is plain, and may hold characters that the byte alphabet lacks.
    """
    if not set(text) <= _ALPHABET:
        text = "".join(_BYTES[byte] for byte in text.encode())
    return tuple(piece.id for piece in student.model.tokenize(text))


_BYTES = byte_alphabet()
_ALPHABET = frozenset(_BYTES)
