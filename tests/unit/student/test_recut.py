from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_teacher as tiny
import training
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from overproof.student.recut import Recut

END, START = 0, 1
HALF = tiny.tokenizer().encode("é").ids[:1]
SMALL = training.vocabulary(300)  # it has to spell some of the teacher's tokens


def recut(vocabulary=SMALL, tokenizer: Tokenizer | None = None) -> Recut:
    return Recut(tokenizer or tiny.tokenizer(), vocabulary)


def spelled(tokens: list[int], vocabulary=SMALL) -> list[int]:
    return [piece for token in tokens for piece in vocabulary.pieces(token)]


def ids(text: str) -> list[int]:
    return tiny.tokenizer().encode(text).ids


def test_half_a_character_is_none() -> None:
    assert tiny.tokenizer().decode(HALF) == "\ufffd"


def test_text_is_cut_as_the_teacher_cuts_it() -> None:
    cut = ids("Where is my parcel? It was due on Monday.")
    assert len(spelled(cut)) > len(cut)
    assert recut().tokens([*spelled(cut), *spelled([END])]) == [*cut, END]


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    found = recut().tokens(SMALL.tokenizer.encode(text).ids)
    assert tiny.tokenizer().decode(found, skip_special_tokens=False) == text


def test_bytes_that_are_no_text_stand_for_themselves_and_the_rest_is_cut() -> None:
    cut = ids("Where is my parcel? ")
    said = [*spelled(cut), *spelled(HALF)]
    assert recut().tokens(said) == [*cut, *HALF]
    assert recut().tokens([*said, *spelled([END])]) == [*cut, *HALF, END]


def test_text_that_spells_a_control_token_is_text() -> None:
    said = [piece for letter in "<|end|>" for piece in spelled(ids(letter))]
    found = recut().tokens(said)
    assert END not in found
    assert tiny.tokenizer().decode(found, skip_special_tokens=False) == "<|end|>"


def test_control_tokens_in_the_middle_stay() -> None:
    cut = ids("Yes, on Monday.")
    said = [*spelled(cut), *spelled([END, START]), *spelled(cut)]
    assert recut().tokens(said) == [*cut, END, START, *cut]


def test_a_tokenizer_that_changes_the_text_is_not_asked() -> None:
    lower = Tokenizer.from_str(tiny.tokenizer().to_str())
    lower.normalizer = normalizers.Lowercase()
    whole = training.vocabulary()
    said = ids("Where is my parcel?")
    assert recut(whole, lower).tokens(said) == said


@pytest.mark.parametrize("wanted", ["truncation", "padding"])
def test_what_a_tokenizer_does_to_batches_is_left_out(wanted: str) -> None:
    other = Tokenizer.from_str(tiny.tokenizer().to_str())
    if wanted == "truncation":
        other.enable_truncation(3)
    else:
        other.enable_padding(length=100)
    cut = ids("Where is my parcel? It was due on Monday.")
    assert recut(tokenizer=other).tokens(spelled(cut)) == cut


def test_a_token_that_the_teacher_lacks_ends_them() -> None:
    whole = training.vocabulary()
    theirs = whole.teacher_ids_V.copy()
    theirs[40] = -1
    lacking = replace(whole, teacher_ids_V=theirs)
    assert recut(lacking).tokens([*HALF, 50, 40, 60]) == [*HALF, 50]


def test_nothing_said_is_nothing() -> None:
    assert recut().tokens([]) == []
