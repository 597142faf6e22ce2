"""Two token sequences of the same text, aligned by bytes."""

from __future__ import annotations

import pytest
import tiny_teacher as tiny

from overproof.student.align import END, Side, spans
from overproof.teacher.tokens import byte_level


def side(tokenizer, ends=()) -> Side:
    return Side.of(tokenizer, byte_level(tokenizer), ends)


@pytest.fixture(scope="module")
def teacher() -> Side:
    return side(tiny.tokenizer(), (0,))


@pytest.fixture(scope="module")
def student() -> Side:
    return side(tiny.other_tokenizer(), (1,))


def cut(raw: str, *sizes: int) -> list[bytes]:
    """A text in pieces of so many bytes."""
    data, found, at = raw.encode(), [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    assert at == len(data)
    return found


def test_digits_that_one_side_joins() -> None:
    ours, theirs = cut("in 2026.", 2, 5, 1), cut("in 2026.", 2, 1, 1, 1, 1, 1, 1)
    assert spans(ours, theirs) == [((0,), (0,)), ((1,), (1, 2, 3, 4, 5)), ((2,), (6,))]


def test_a_character_of_several_bytes_that_one_side_cuts() -> None:
    """A cut inside a character is a boundary like any other, where both have it."""
    ours, theirs = cut("a😀!", 1, 2, 2, 1), cut("a😀!", 1, 3, 1, 1)
    assert spans(ours, theirs) == [((0,), (0,)), ((1, 2), (1, 2)), ((3,), (3,))]
    assert spans(cut("日本", 3, 3), cut("日本", 3, 3)) == [((0,), (0,)), ((1,), (1,))]


@pytest.mark.parametrize("more", [1, 2, 5])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_beginning_of_text_more_on_one_side_merges_nothing(more: int, at: int) -> None:
    """One token of no text must not shift all that follows into one bucket."""
    words = cut("Where is it?", 5, 3, 3, 1)
    longer = words[:at] + [b""] * more + words[at:]
    plain = spans(words, words)
    assert len(plain) == 4
    for ours, theirs in ((longer, words), (words, longer), (longer, longer)):
        found = spans(ours, theirs)
        assert [len(span.ours) for span in found] == [1, 1, 1, 1]
        assert [b"".join(ours[one] for one in span.ours) for span in found] == words
        assert [b"".join(theirs[one] for one in span.theirs) for span in found] == words


def test_ends_are_aligned_as_ends_whatever_tokens_they_are(teacher: Side, student: Side) -> None:
    text = "the parcel"
    ours, theirs = [*student.cut(text), 1], [*teacher.cut(text), 0]
    *_, last = spans(student.texts(ours), teacher.texts(theirs))
    assert last == ((len(ours) - 1,), (len(theirs) - 1,))
    assert student.texts([1]) == teacher.texts([0]) == [END]
    assert student.text(ours) == teacher.text(theirs) == text.encode()


def test_spans_end_before_the_first_byte_that_is_another() -> None:
    assert spans(cut("abXd", 1, 1, 1, 1), cut("abYd", 1, 1, 1, 1)) == [((0,), (0,)), ((1,), (1,))]
    assert spans(cut("ab", 1, 1), cut("abcd", 1, 2, 1)) == [((0,), (0,))]
    assert spans([], []) == []
    assert spans([b""], cut("a", 1)) == []


def test_real_tokenizers_on_digits_and_characters(teacher: Side, student: Side) -> None:
    text = "order 123456 😀 naïve 日本"
    ours, theirs = student.cut(text), teacher.cut(text)
    found = spans(student.texts(ours), teacher.texts(theirs))
    number = [
        span for span in found if b"12" in b"".join(student.texts([ours[i] for i in span.ours]))
    ]
    assert len(number[0].theirs) > len(number[0].ours)
    assert sum(len(span.ours) for span in found) == len(ours)
