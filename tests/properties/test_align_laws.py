"""What must hold of an alignment of any text, by two real tokenizers."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "release"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "teacher"))

import tiny_teacher as tiny
from tiny_model import teacher_tokenizer

from overproof.student.align import Side, spans
from overproof.student.common import Common
from overproof.teacher.tokens import byte_level

WORDS = st.sampled_from(
    [" parcel", "Monday 12 May 2026", "123456", "I'll", "   ", "\n\n", "😀", "👩‍👩‍👧", "ß",
     "日本語", "e\u0301", "a\u0308o\u0308", "naïve", " 12,345.00", "\u200f", "العربية"]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.lists(st.one_of(WORDS, st.text(st.characters(exclude_categories=["Cs"]), max_size=3))).map(
        "".join
    ),
)
LAWS = settings(max_examples=150, deadline=None)


@cache
def sides() -> tuple[Side, Side]:
    """A small tokenizer that joins digits, and that of SmolLM2, which cuts each."""
    whole, small = teacher_tokenizer().backend_tokenizer, tiny.other_tokenizer()
    ends = (whole.token_to_id("<|im_end|>"),)
    return Side.of(small, byte_level(small), (1,)), Side.of(whole, byte_level(whole), ends)


@cache
def common() -> Common:
    student, teacher = sides()
    return Common.of(teacher, student)


def aligned(text: str) -> tuple[list[bytes], list[bytes], list]:
    ours, theirs = (side.texts(side.cut(text)) for side in sides())
    return ours, theirs, spans(ours, theirs)


@LAWS
@given(TEXTS)
def test_every_byte_is_in_one_span_and_both_sides_say_the_same(text: str) -> None:
    ours, theirs, found = aligned(text)
    if b"".join(theirs) != text.encode():  # SmolLM2 has no token for some bytes
        return
    assert b"".join(ours) == text.encode()
    assert [one for span in found for one in span.ours] == list(range(len(ours)))
    assert [one for span in found for one in span.theirs] == list(range(len(theirs)))
    for span in found:
        mine = b"".join(ours[one] for one in span.ours)
        assert mine == b"".join(theirs[one] for one in span.theirs)
        assert mine


@LAWS
@given(TEXTS)
def test_no_span_could_be_cut_further(text: str) -> None:
    """Inside a span no boundary of one side is one of the other."""
    ours, theirs, found = aligned(text)
    for span in found:
        inside = []
        for side, places in ((ours, span.ours), (theirs, span.theirs)):
            sizes = [len(side[place]) for place in places]
            inside.append({sum(sizes[:count]) for count in range(1, len(sizes))})
        assert not inside[0] & inside[1]


@LAWS
@given(TEXTS, st.integers(0, 3), st.integers(0, 3))
def test_tokens_without_text_change_nothing(text: str, first: int, second: int) -> None:
    ours, theirs, found = aligned(text)
    moved = spans([b""] * first + ours, theirs[:1] + [b""] * second + theirs[1:])
    assert len(moved) == len(found)
    for new, old in zip(moved, found, strict=True):
        assert new.ours == tuple(one + first for one in old.ours)
        assert new.theirs == tuple(one + second * (one > 0) for one in old.theirs)


@LAWS
@given(TEXTS)
def test_both_sides_begin_a_span_in_one_cell(text: str) -> None:
    """What makes a cell one event for both, at the places that count: nearly everywhere."""
    student, teacher = sides()
    ours, theirs = student.cut(text), teacher.cut(text)
    found = spans(student.texts(ours), teacher.texts(theirs))
    cells = common()
    for span in found:
        mine, said = ours[span.ours[0]], theirs[span.theirs[0]]
        raw = student.bytes_of[mine], teacher.bytes_of[said]
        if cells.cell_V[mine] != cells.cell_U[said]:
            # Only where a side cuts a token otherwise in its text than alone.
            assert student.pieces(raw[0]) != (mine,) or teacher.pieces(raw[0])[0] != said


def test_cells_divide_both_vocabularies_and_each_has_a_token_of_either_side() -> None:
    student, teacher = sides()
    cells = common()
    assert cells.cell_V.max() + 1 == cells.cells
    assert len(cells.cell_U) == teacher.rows
    assert cells.cell_V[1] == cells.cell_U[teacher.ends[0]]  # the ends are one
    for token in range(student.rows):
        same = cells.same_V[token]
        if same >= 0:
            assert student.bytes_of[token] == teacher.bytes_of[same]
            if student.pieces(student.bytes_of[token]) == (token,):
                assert cells.cell_U[same] == cells.cell_V[token]
    assert 0.3 < cells.cells / student.rows < 1.0


def test_a_side_that_lacks_bytes_has_cells_too() -> None:
    """SmolLM2's tokenizer has no token for some bytes, which the small one has."""
    small, whole = sides()
    known = set(b"".join(whole.bytes_of.values()))
    assert len(known) < 256
    cells = Common.of(small, whole)
    for token, raw in small.bytes_of.items():
        if set(raw) <= known and raw and token not in small.ends:
            assert raw.startswith(whole.bytes_of[int(cells.first_U[token])])
    assert cells.cells <= whole.rows
