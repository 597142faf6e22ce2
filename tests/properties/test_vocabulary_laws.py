"""What must hold of a trimmed vocabulary for any text."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "release"))

from tiny_model import CONTROL, teacher_tokenizer

from overproof.student.vocabulary import Vocabulary, trim

BYTES = sorted(ByteLevel.alphabet())
SIZES = (279, 2_000, 12_288)
# Characters of every plane, and the words of a task, so that whole tokens occur too.
WORDS = st.sampled_from(
    [" parcel", "Monday", "I'll", "refund", "   ", "\n\n", "2024-03", "😀", "ß"]
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.lists(st.one_of(WORDS, st.text(st.characters(exclude_categories=["Cs"]), max_size=3))).map(
        "".join
    ),
)


def teacher() -> Tokenizer:
    return teacher_tokenizer().backend_tokenizer


@cache
def trimmed(size: int) -> Vocabulary:
    """Trimmed by an arbitrary mass, so that tokens are kept whose parts the task never uses."""
    mass = np.random.default_rng(0).random(teacher().get_vocab_size()) ** 8
    return trim(teacher(), mass, size, CONTROL)


def texts_of(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    return [vocabulary.tokenizer.id_to_token(number) for number in ids]


@settings(max_examples=120, deadline=None)
@given(TEXTS, st.sampled_from(SIZES))
def test_any_text_comes_back(text: str, size: int) -> None:
    student = trimmed(size).tokenizer
    ids = student.encode(text, add_special_tokens=False).ids
    assert student.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= number < size for number in ids)


@settings(max_examples=120, deadline=None)
@given(TEXTS, st.sampled_from(SIZES))
def test_the_teachers_spelling_in_pieces_says_the_same(text: str, size: int) -> None:
    vocabulary = trimmed(size)
    ids = teacher().encode(text, add_special_tokens=False).ids
    pieces = [piece for token in ids for piece in vocabulary.pieces(token)]
    theirs = teacher().decode(ids, skip_special_tokens=False)  # lossy: it lacks some bytes
    assert vocabulary.tokenizer.decode(pieces, skip_special_tokens=False) == theirs
    firsts = [vocabulary.pieces(token)[0] for token in ids]
    assert firsts == vocabulary.student_ids_U[ids].tolist()


@settings(max_examples=120, deadline=None)
@given(TEXTS, st.sampled_from(SIZES))
def test_text_of_kept_tokens_is_encoded_as_the_teacher_does(text: str, size: int) -> None:
    vocabulary = trimmed(size)
    ids = [
        token
        for token in teacher().encode(text, add_special_tokens=False).ids
        if vocabulary.kept_U[token]
    ]
    try:
        text = b"".join(_bytes(teacher().id_to_token(token)) for token in ids).decode()
    except UnicodeDecodeError:
        return
    theirs = teacher().encode(text, add_special_tokens=False).ids
    if not vocabulary.kept_U[theirs].all():  # neighbours merged into a token that is not kept
        return
    ours = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
    assert vocabulary.teacher_ids_V[ours].tolist() == theirs


def _bytes(token: str) -> bytes:
    from overproof.student.vocabulary import _BYTES

    table = {character: byte for byte, character in enumerate(_BYTES)}
    return bytes(table[character] for character in token) if set(token) <= set(table) else b""


@pytest.mark.parametrize("size", SIZES)
def test_every_id_means_one_token_and_the_teachers_own(size: int) -> None:
    """A control token's row is the teacher's row of that control token."""
    vocabulary = trimmed(size)
    assert vocabulary.size == vocabulary.tokenizer.get_vocab_size()
    assert size - 10 < vocabulary.size <= size  # the last token may need more room than is left
    for number, old in enumerate(vocabulary.teacher_ids_V.tolist()):
        text = vocabulary.tokenizer.id_to_token(number)
        assert vocabulary.tokenizer.token_to_id(text) == number
        assert teacher().token_to_id(text) == (old if old >= 0 else None)
    kept = np.flatnonzero(vocabulary.kept_U)
    assert sorted(vocabulary.teacher_ids_V[vocabulary.teacher_ids_V >= 0]) == kept.tolist()
    assert vocabulary.teacher_ids_V[vocabulary.student_ids_U[kept]].tolist() == kept.tolist()


@pytest.mark.parametrize("size", SIZES)
def test_closed_under_merges(size: int) -> None:
    """Every kept token of more than one byte is the result of a kept merge of kept tokens."""
    state = json.loads(trimmed(size).tokenizer.to_str())["model"]
    made = {left + right for left, right in state["merges"]}
    assert all(part in state["vocab"] for merge in state["merges"] for part in merge)
    special = {str(token) for token in teacher().get_added_tokens_decoder().values()}
    assert special > set(CONTROL)
    assert made == {text for text in state["vocab"] if len(text) > 1} - special


@st.composite
def merge_tables(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges in any order, several of which may have one result, as converted tables have."""
    made, merges = list("abc"), list[tuple[str, str]]()
    for _ in range(draw(st.integers(1, 14))):
        pair = draw(st.tuples(st.sampled_from(made), st.sampled_from(made)))
        if pair not in merges and len("".join(pair)) < 8:
            merges.append(pair)
            made += [] if "".join(pair) in made else ["".join(pair)]
    return draw(st.permutations(merges)) if draw(st.booleans()) else merges


@settings(max_examples=300, deadline=None)
@given(merge_tables(), st.data(), st.booleans())
def test_any_table_of_merges(
    merges: list[tuple[str, str]], data: st.DataObject, whole: bool
) -> None:
    """What the teacher cuts into kept tokens is cut so here, whatever way leads to them."""
    ids = {text: number for number, text in enumerate(BYTES)}
    for left, right in merges:
        ids.setdefault(left + right, len(ids))
    theirs = Tokenizer(models.BPE(ids, merges, ignore_merges=whole))
    theirs.pre_tokenizer, theirs.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    mass = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(ids), max_size=len(ids))))
    vocabulary = trim(theirs, mass, data.draw(st.integers(256, len(ids))), ())
    kept = [text for text in ids if vocabulary.kept_U[ids[text]]]
    words = st.lists(st.sampled_from(kept), max_size=6).map("".join)
    for text in [*kept, *data.draw(st.lists(words, max_size=5))]:
        wanted = theirs.model.tokenize(text)
        if all(vocabulary.kept_U[piece.id] for piece in wanted):
            ours = vocabulary.tokenizer.model.tokenize(text)
            assert [piece.value for piece in ours] == [piece.value for piece in wanted]


@settings(max_examples=60, deadline=None)
@given(TEXTS.filter(lambda text: "<|" not in text), st.sampled_from(CONTROL))
def test_control_tokens_stay_whole_between_text(text: str, control: str) -> None:
    vocabulary = trimmed(2_000)
    ids = vocabulary.tokenizer.encode(control + text + control, add_special_tokens=False).ids
    number = vocabulary.tokenizer.token_to_id(control)
    assert ids[0] == ids[-1] == number
    assert vocabulary.teacher_ids_V[number] == teacher().token_to_id(control)
