"""Answers of a model that cannot be packed, against the model itself; equal bits, whoever asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_teacher as tiny
import tiny_v4
import torch

from overproof.teacher.example import Example
from overproof.teacher.kept import States, TopK
from overproof.teacher.lockstep import Lockstep, groups
from overproof.teacher.request import Drawing, Request
from overproof.teacher.signals import shard_signals

HEAD = (11, 12, 13)
DRAWING = Drawing(1.0, 1.0, tiny.TOKENS, 9, 4, (0, *range(200, 230)))


def requests(count: int, most: int = 9) -> list[Request]:
    rng = np.random.default_rng(3)
    prompts = [rng.integers(2, tiny.TOKENS, rng.integers(1, most)).tolist() for _ in range(count)]
    return [Request.make(f"r{index}", ids, 7, signals=True) for index, ids in enumerate(prompts)]


@pytest.fixture(scope="module")
def model():
    return tiny_v4.model()


def test_greedy_answers_are_those_of_the_model_itself(model) -> None:
    wanted = requests(10, most=30)
    for request, answer in Lockstep(model, HEAD, replace(DRAWING, top_k=1)).draw(wanted):
        tokens = [*HEAD, *request.ids]
        for token in answer.tokens:
            assert token == int(tiny.alone(model, tokens)[-1].argmax())
            tokens.append(token)
        assert len(answer.tokens) == 9 or answer.tokens[-1] in DRAWING.stop_ids
        assert not {*answer.tokens[:-1]} & {*DRAWING.stop_ids}


def test_groups_are_of_one_length_and_stay_what_they_are() -> None:
    wanted = requests(60)
    whole = groups(wanted, 4)
    assert sorted(one.key for group in whole for one in group) == sorted(r.key for r in wanted)
    for group in whole:
        assert len(group) <= 4
        assert len({len(request.ids) for request in group}) == 1
    for part in (whole[::2], whole[1::2], whole[5:9]):
        assert groups([one for group in part for one in group], 4) == part
    assert groups(wanted[::-1], 4) == whole
    assert groups([], 4) == []


def test_a_group_says_the_same_whoever_else_is_asked(model) -> None:
    wanted = requests(24)
    drawing = replace(DRAWING, signals=TopK(6, 3, prompts=True))
    whole = {one.key: answer for one, answer in Lockstep(model, HEAD, drawing).draw(wanted)}
    assert len(whole) == 24
    part = [one for group in groups(wanted, drawing.slots)[1::2] for one in group]
    for request, answer in Lockstep(model, HEAD, drawing).draw(part[::-1]):
        assert answer.tokens == whole[request.key].tokens
        for mine, theirs in zip(
            answer.signals.arrays, whole[request.key].signals.arrays, strict=True
        ):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("prompts", [False, True])
def test_signals_kept_while_drawing_are_those_of_a_pass_over_the_answers(
    model, prompts: bool
) -> None:
    kept = States(prompts=prompts)
    for request, answer in Lockstep(model, HEAD, replace(DRAWING, signals=kept)).draw(requests(6)):
        example = Example(request.record, request.ids, tuple(answer.tokens))
        again = shard_signals(model, HEAD, [example], 48, kept)
        assert len(answer.signals) == len(example.targets(prompt=prompts))
        torch.testing.assert_close(
            answer.signals.hidden_NE.float(), again.hidden_NE.float(), atol=0.02, rtol=0.02
        )


def test_what_is_kept_changes_no_answer(model) -> None:
    plain = [answer.tokens for _, answer in Lockstep(model, HEAD, DRAWING).draw(requests(8))]
    drawing = replace(DRAWING, signals=TopK(3))
    kept = [answer.tokens for _, answer in Lockstep(model, HEAD, drawing).draw(requests(8))]
    assert kept == plain
