from __future__ import annotations

import numpy as np
import pytest
import tiny_teacher as tiny
import torch

from overproof.core.errors import UsageError
from overproof.data.pack import PADDING, PREFIX, longest_first, pack
from overproof.teacher.forward import model_inputs

HEAD = (5, 6, 7)


def test_one_sequence_written_out() -> None:
    packed = pack((9, 8), [(1, 2), (3, 4, 5), (6,)], 8)
    assert packed.tokens_RT.tolist() == [[9, 8, 1, 2, 3, 4, 5, 6]]
    assert packed.positions_RT.tolist() == [[0, 1, 2, 3, 2, 3, 4, 2]]
    assert packed.segments_RT.tolist() == [[0, 0, 1, 1, 2, 2, 2, 3]]
    assert packed.source_RT.tolist() == [[-1, -1, 0, 1, 2, 3, 4, 5]]
    assert packed.predicts_RT.tolist() == [[False, False, True, False, True, True, False, False]]


def test_the_first_sequence_with_room_takes_the_next_example() -> None:
    packed = pack((), [(1,) * 5, (2,) * 4, (3,) * 3], 8)
    assert packed.tokens_RT.tolist() == [[1] * 5 + [3] * 3, [2] * 4 + [0] * 4]
    assert (packed.segments_RT[1, 4:] == PADDING).all()


def test_the_order_says_which_examples_and_when() -> None:
    packed = pack((), [(1,), (2,), (3,)], 8, [2, 0])
    assert packed.tokens_RT[0, :2].tolist() == [3, 1]
    assert packed.source_RT[0, :3].tolist() == [2, 0, -1]


def test_an_example_that_does_not_fit_is_told_with_what_to_do() -> None:
    with pytest.raises(UsageError, match="an example of 6 tokens") as caught:
        pack(HEAD, [(1,), (1,) * 6], 8)
    assert "3 tokens go to the shared prefix" in caught.value.render()
    assert "sequence_length" in caught.value.render()
    assert pack(HEAD, [(1,) * 5], 8).tokens_RT.shape == (1, 8)


def test_some_rows_are_cut_to_the_longest_of_them() -> None:
    packed = pack(HEAD, [(1,) * 37, (2,) * 10], 40, [0, 1])
    assert packed.rows(slice(0, 1)).tokens_RT.shape == (1, 40)
    cut = packed.rows(slice(1, 2))
    assert cut.tokens_RT.tolist() == [[5, 6, 7, *[2] * 10, 0, 0, 0]]  # up to a multiple of 16
    assert cut.mask_RTT().shape == (1, 16, 16)


def test_nobody_sees_a_neighbour_or_the_future() -> None:
    packed = pack((9,), [(1, 2), (3,)], 5)
    assert packed.mask_RTT()[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],  # padding, itself alone
    ]
    assert (packed.segments_RT[0, 0]) == PREFIX


@pytest.mark.parametrize("head", [(), HEAD, (4,) * 20])
def test_a_packed_forward_pass_equals_each_example_alone(head: tuple[int, ...]) -> None:
    model = tiny.model()
    texts = [one.tokens for one in tiny.examples(24)]
    packed = pack(head, texts, 48)
    assert 1 < len(packed.tokens_RT) < len(texts)
    with torch.inference_mode():
        logits = model(**model_inputs(packed, torch.float32)).logits
    flat, seen = np.concatenate([np.array(text) for text in texts]), 0
    rows = {int(source): logits[r, t] for (r, t), source in np.ndenumerate(packed.source_RT)}
    for text in texts:
        wanted = tiny.alone(model, [*head, *text])[len(head) :]
        got = torch.stack([rows[index] for index in range(seen, seen + len(text))])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        seen += len(text)
    assert seen == len(flat)


def test_longest_first_needs_fewer_sequences() -> None:
    texts = [(1,) * size for size in (2, 2, 2, 6, 6, 6)]
    assert len(pack((), texts, 8).tokens_RT) == 4
    order = longest_first(texts)
    packed = pack((), texts, 8, order)
    assert len(packed.tokens_RT) == 3
    assert sorted(order) == list(range(6))
    assert sorted(packed.source_RT[packed.source_RT >= 0]) == list(range(24))
