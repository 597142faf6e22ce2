from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import training
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from overproof.core.errors import StageError, UsageError
from overproof.student.vocabulary import _BYTES, Vocabulary, trim


def test_too_small_a_size_says_what_is_needed() -> None:
    mass = np.ones(tiny.TOKENS)
    with pytest.raises(UsageError, match=r"student\.vocabulary is 257") as caught:
        trim(tiny.tokenizer(), mass, 257, tiny.CONTROL)
    assert "bytes and control tokens need 258" in caught.value.render()
    assert trim(tiny.tokenizer(), mass, 258, tiny.CONTROL).size == 258


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    with pytest.raises(StageError, match="no byte-level BPE") as caught:
        trim(Tokenizer(models.WordLevel({"a": 0}, "a")), np.ones(1), 300, ())
    assert "got model WordLevel" in caught.value.render()


def bpe(*merges: tuple[str, str]) -> Tokenizer:
    """Bytes and these merges."""
    ids = {text: number for number, text in enumerate(_BYTES)}
    for left, right in merges:
        ids.setdefault(left + right, len(ids))
    made = Tokenizer(models.BPE(ids, list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def test_a_token_is_kept_with_the_merges_that_lead_to_it() -> None:
    """Two merges make `abcd`; the later one, by `abc`, is never reached."""
    whole = bpe(("a", "b"), ("c", "d"), ("b", "c"), ("ab", "cd"), ("a", "bc"), ("abc", "d"))
    assert whole.encode("abcd").tokens == ["abcd"]
    mass = np.zeros(whole.get_vocab_size())
    mass[whole.token_to_id("abcd")], mass[whole.token_to_id("bc")] = 2, 1
    vocabulary = trim(whole, mass, 256 + 4, ())
    assert vocabulary.tokenizer.encode("abcd").tokens == ["abcd"]
    assert set(vocabulary.tokenizer.get_vocab()) - set(_BYTES) == {"ab", "cd", "abcd", "bc"}


def test_a_token_that_no_merge_leads_to_brings_nothing_along() -> None:
    """No text is cut into it: `bc` always comes before."""
    whole = bpe(("b", "c"), ("a", "b"), ("ab", "c"))
    assert whole.encode("abc").tokens == ["a", "bc"]
    mass = np.zeros(whole.get_vocab_size())
    mass[whole.token_to_id("abc")] = 1
    vocabulary = trim(whole, mass, 256 + 1, ())
    assert set(vocabulary.tokenizer.get_vocab()) - set(_BYTES) == {"abc"}
    assert vocabulary.pieces(whole.token_to_id("abc")) == (vocabulary.whole(258),)


def test_without_a_token_its_neighbours_may_merge() -> None:
    """The one thing that is not promised; either way the text is the same."""
    whole = bpe(("a", "b"), ("b", "c"))
    mass = np.zeros(whole.get_vocab_size())
    mass[whole.token_to_id("bc")] = 1
    vocabulary = trim(whole, mass, 256 + 1, ())
    ours = vocabulary.tokenizer.encode("abc").ids
    pieces = [piece for token in whole.encode("abc").ids for piece in vocabulary.pieces(token)]
    named = [[vocabulary.tokenizer.id_to_token(piece) for piece in one] for one in (ours, pieces)]
    assert named == [["a", "bc"], ["a", "b", "c"]]
    assert vocabulary.tokenizer.decode(ours) == vocabulary.tokenizer.decode(pieces) == "abc"


def test_room_for_all_keeps_all() -> None:
    vocabulary = training.vocabulary(10_000)
    assert vocabulary.size == tiny.TOKENS
    assert vocabulary.teacher_ids_V.tolist() == list(range(tiny.TOKENS))
    assert vocabulary.kept_U.all()
    assert vocabulary.tokenizer.get_vocab() == tiny.tokenizer().get_vocab()


def test_the_tokens_of_the_task_are_kept_first() -> None:
    mass = np.zeros(tiny.TOKENS)
    wanted = tiny.tokenizer().encode(" parcel Monday").ids
    mass[wanted] = 1.0
    vocabulary = trim(tiny.tokenizer(), mass, 300, tiny.CONTROL)
    assert vocabulary.kept_U[wanted].all()


def test_added_tokens_of_any_characters_have_a_spelling() -> None:
    """Some tokenizers add runs of spaces or signs that the byte alphabet lacks."""
    whole = Tokenizer.from_str(tiny.tokenizer().to_str())
    whole.add_tokens(["  ", "<｜begin▁of▁sentence｜>"])
    size = whole.get_vocab_size()
    vocabulary = trim(whole, np.ones(size), 300, tiny.CONTROL)
    for text in ("  ", "<｜begin▁of▁sentence｜>"):
        pieces = vocabulary.pieces(whole.token_to_id(text))
        assert vocabulary.tokenizer.decode(list(pieces)) == text
        assert vocabulary.student_ids_U[whole.token_to_id(text)] == pieces[0]


def test_the_byte_alphabet_is_the_librarys() -> None:
    tokenizer = tiny.tokenizer()
    state = json.loads(tokenizer.to_str())["model"]["vocab"]
    assert set(_BYTES) <= set(state)
    for text in ("a", "é", "😀", "\n", "\x7f"):
        spelling = "".join(_BYTES[byte] for byte in text.encode())
        ids = [tokenizer.token_to_id(character) for character in spelling]
        assert tokenizer.decode(ids) == text


def test_rows_beyond_the_tokenizer_have_a_place_to_go() -> None:
    """Models round their matrices up: Qwen has 151,936 rows and 151,669 tokens."""
    vocabulary = trim(tiny.tokenizer(), np.ones(tiny.TOKENS + 24), 300, tiny.CONTROL)
    assert len(vocabulary.student_ids_U) == tiny.TOKENS + 24
    assert not vocabulary.kept_U[tiny.TOKENS :].any()
    assert vocabulary.pieces(tiny.TOKENS + 3) == (0,)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    vocabulary = training.vocabulary()
    vocabulary.tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    for token in range(tiny.TOKENS):
        assert again.pieces(token) == vocabulary.pieces(token)
    assert again.teacher_ids_V.tolist() == vocabulary.teacher_ids_V.tolist()
    assert again.kept_U.tolist() == vocabulary.kept_U.tolist()
