"""What must hold of packing for any examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overproof.core.errors import UsageError
from overproof.data.pack import PADDING, PREFIX, Packed, pack

TOKEN = st.integers(1, 1_000)
EXAMPLES = st.lists(st.lists(TOKEN, min_size=1, max_size=9), min_size=1, max_size=25)
HEADS = st.lists(TOKEN, max_size=5)
LENGTHS = st.integers(14, 40)


@settings(max_examples=80, deadline=None)
@given(HEADS, EXAMPLES, LENGTHS)
def test_every_token_exactly_once(head: list[int], examples: list[list[int]], length: int) -> None:
    packed = pack(head, examples, length)
    flat = np.concatenate(examples)
    places = packed.source_RT >= 0
    assert sorted(packed.source_RT[places].tolist()) == list(range(len(flat)))
    assert (packed.tokens_RT[places] == flat[packed.source_RT[places]]).all()
    assert packed.tokens_RT.shape[1] == length
    assert (packed.segments_RT[places] > PREFIX).all()


@settings(max_examples=80, deadline=None)
@given(HEADS, EXAMPLES, LENGTHS, st.randoms(use_true_random=False))
def test_an_example_stays_in_one_piece(head, examples, length, random) -> None:
    order = list(range(len(examples)))
    random.shuffle(order)
    packed = pack(head, examples, length, order)
    starts = np.cumsum([0, *map(len, examples)])
    for row in range(len(packed.tokens_RT)):
        assert packed.tokens_RT[row, : len(head)].tolist() == head
        for segment in range(1, packed.segments_RT[row].max() + 1):
            where = np.flatnonzero(packed.segments_RT[row] == segment)
            source = packed.source_RT[row, where]
            index = int(np.searchsorted(starts, source[0], side="right")) - 1
            assert packed.tokens_RT[row, where].tolist() == examples[index]
            assert (np.diff(where) == 1).all()
            assert packed.positions_RT[row, where].tolist() == list(
                range(len(head), len(head) + len(where))
            )
            assert packed.predicts_RT[row, where].tolist() == [True] * (len(where) - 1) + [False]


@settings(max_examples=40, deadline=None)
@given(HEADS, EXAMPLES, LENGTHS)
def test_who_attends_to_whom(head: list[int], examples: list[list[int]], length: int) -> None:
    packed = pack(head, examples, length)
    for row, mask in enumerate(packed.mask_RTT()):
        segments = packed.segments_RT[row]
        for query in range(length):
            wanted = {query} | {
                key
                for key in range(query + 1)
                if segments[query] != PADDING and segments[key] in (PREFIX, segments[query])
            }
            assert set(np.flatnonzero(mask[query]).tolist()) == wanted


@settings(max_examples=40, deadline=None)
@given(HEADS, EXAMPLES, LENGTHS, st.integers(0, 24))
def test_an_example_too_long_is_refused_wherever_it_stands(head, examples, length, at) -> None:
    long = [1] * (length - len(head) + 1)
    with pytest.raises(UsageError):
        pack(head, [*examples[:at], long, *examples[at:]], length)


@settings(max_examples=40, deadline=None)
@given(HEADS, EXAMPLES, LENGTHS, st.integers(0, 5), st.integers(1, 4))
def test_rows_lose_nothing(head, examples, length, start: int, count: int) -> None:
    packed = pack(head, examples, length)
    part = slice(start, start + count)
    some = packed.rows(part)
    for name in Packed.__annotations__:
        whole, cut = getattr(packed, name)[part], getattr(some, name)
        assert (whole[:, : cut.shape[1]] == cut).all()
    assert (packed.segments_RT[part, some.tokens_RT.shape[1] :] == PADDING).all()
