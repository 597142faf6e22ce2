from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import torch
import training

from overproof.core.errors import StageError
from overproof.student import targets as module
from overproof.student.examples import NO_TARGET, build_train_set, respell
from overproof.student.targets import project
from overproof.student.vocabulary import Vocabulary
from overproof.teacher.example import Example
from overproof.teacher.kept import Spread, TopK
from overproof.teacher.signals import shard_signals


@pytest.fixture(scope="module")
def small() -> Vocabulary:
    return training.vocabulary(280)


@pytest.fixture(scope="module")
def spelled(small: Vocabulary) -> int:
    """A teacher token that the student writes in three pieces or more."""
    return next(t for t in range(tiny.TOKENS) if len(small.pieces(t)) > 2)


def test_a_kept_token_is_itself_and_predicted_by_the_one_before(small: Vocabulary) -> None:
    a, b, c = np.flatnonzero(small.kept_U)[5:8].tolist()
    one = respell(Example("k", (a,), (b, c)), small)
    assert one.tokens == small.student_ids_U[[a, b, c]].tolist()
    assert one.teacher_positions == [0, 1, NO_TARGET]
    assert one.spelled == [False, False, False]


def test_a_spelled_token_has_its_target_at_the_first_piece(small: Vocabulary, spelled: int) -> None:
    kept = int(np.flatnonzero(small.kept_U)[5])
    pieces = small.pieces(spelled)
    one = respell(Example("k", (kept,), (spelled, kept)), small)
    own = int(small.student_ids_U[kept])
    assert one.tokens == [own, *pieces, own]
    inside = len(pieces) - 1
    assert one.teacher_positions == [0, *[NO_TARGET] * inside, 1, NO_TARGET]
    assert one.spelled == [False, *[True] * inside, False, False]


def test_a_spelled_token_of_the_prompt_has_no_target(small: Vocabulary, spelled: int) -> None:
    one = respell(Example("k", (spelled, spelled), (5,)), small)
    count = 2 * len(small.pieces(spelled))
    assert one.spelled == [False] * (count + len(small.pieces(5)))
    assert [p for p in one.teacher_positions if p != NO_TARGET] == [0]
    assert one.teacher_positions[count - 1] == 0


def test_projection_sums_the_mass_of_tokens_with_one_first_piece(
    small: Vocabulary, spelled: int
) -> None:
    first = small.pieces(spelled)[0]
    whole = int(small.teacher_ids_V[first])
    other = int(np.flatnonzero(small.kept_U & (small.student_ids_U != first))[9])
    signals = Spread(
        torch.tensor([[spelled, whole, other]]),
        torch.tensor([[0.5, 0.25, 0.125]]),
        torch.tensor([[spelled, other]]),
    )
    ((ids, probs, drawn),) = project(signals, small, 3)
    assert drawn.tolist() == [[first, int(small.student_ids_U[other])]]
    assert ids[0, :2].tolist() == [first, int(small.student_ids_U[other])]
    np.testing.assert_allclose(probs[0], [0.75, 0.125, 0.0], rtol=1e-3, atol=1e-6)


def test_projection_to_more_than_the_student_has(small: Vocabulary, tmp_path: Path) -> None:
    examples = tiny.examples(3)
    signals = shard_signals(tiny.model(), training.HEAD, examples, training.ROOM, TopK(400, 2))
    data = build_train_set(tmp_path / "set", training.HEAD, examples, small, [signals.spread()])
    assert data.targets.ids_NK.shape == data.targets.probs_NK.shape == (len(data.tokens_N), 280)
    assert (data.targets.ids_NK < 280).all()


def test_a_set_of_signals_without_draws(small: Vocabulary, tmp_path: Path) -> None:
    examples = tiny.examples(3)
    signals = shard_signals(tiny.model(), training.HEAD, examples, training.ROOM, TopK(8))
    data = build_train_set(tmp_path / "set", training.HEAD, examples, small, [signals.spread()])
    assert data.targets.drawn_NR.shape == (len(data.tokens_N), 0)


@pytest.mark.parametrize("prompts", [False, True])
def test_a_set_lines_up_with_the_teacher(
    small: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: bool
) -> None:
    examples = tiny.examples(12)
    parts = [
        shard_signals(tiny.model(), training.HEAD, some, training.ROOM, TopK(8, 3, prompts=prompts))
        for some in (examples[:5], examples[5:])
    ]
    chunks = [chunk for part in parts for chunk in project(part.spread(), small, 8)]
    ids, probs, drawn = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
    monkeypatch.setattr(module, "PROJECT_ROWS", 7)
    data = build_train_set(
        tmp_path / "set",
        training.HEAD,
        examples,
        small,
        [part.spread() for part in parts],
        prompts=prompts,
    )
    assert [piece for t in training.HEAD for piece in small.pieces(t)] == data.prefix.tolist()
    start, row = 0, 0
    for example in examples:
        one = respell(example, small, prompt=prompts)
        own = [position for position in one.teacher_positions if position != NO_TARGET]
        assert own == list(range(len(example.targets(prompt=prompts))))
        for place, position in enumerate(one.teacher_positions):
            at = start + place
            assert data.tokens_N[at] == one.tokens[place]
            assert data.weight_N[at] == (position != NO_TARGET or one.spelled[place])
            if position != NO_TARGET:
                assert (data.targets.ids_NK[at] == ids[row + position]).all()
                assert (data.targets.probs_NK[at] == probs[row + position]).all()
                assert (data.targets.drawn_NR[at] == drawn[row + position]).all()
            elif one.spelled[place]:
                assert data.targets.ids_NK[at, 0] == one.tokens[place + 1]
                assert data.targets.probs_NK[at].tolist() == [1.0] + [0.0] * 7
        start, row = start + len(one.tokens), row + len(own)
    assert start == len(data.tokens_N)


def test_without_signals_the_target_is_the_next_token(small: Vocabulary, tmp_path: Path) -> None:
    examples = tiny.examples(12)
    data = build_train_set(tmp_path / "control", training.HEAD, examples, small, None)
    used = np.flatnonzero(data.weight_N)
    assert (data.targets.ids_NK[used, 0] == data.tokens_N[used + 1]).all()
    assert (data.targets.probs_NK == 1.0).all()
    signals = shard_signals(tiny.model(), training.HEAD, examples, training.ROOM, TopK(8, 3))
    with_signals = build_train_set(
        tmp_path / "student", training.HEAD, examples, small, [signals.spread()]
    )
    assert (data.weight_N == with_signals.weight_N).all()


@pytest.mark.parametrize("count", [11, 13])
def test_signals_of_other_answers_are_told(small: Vocabulary, tmp_path: Path, count: int) -> None:
    examples = tiny.examples(13)
    signals = shard_signals(
        tiny.model(), training.HEAD, examples[:count], training.ROOM, TopK(8, 3)
    )
    with pytest.raises(StageError, match="not those of these answers"):
        build_train_set(tmp_path / "set", training.HEAD, examples[:12], small, [signals.spread()])
    assert not (tmp_path / "set").exists()


def test_a_whole_set_is_kept_and_half_a_set_is_written_anew(
    small: Vocabulary, tmp_path: Path
) -> None:
    examples, folder = tiny.examples(12), tmp_path / "set"
    (tmp_path / "set.part").mkdir()
    (tmp_path / "set.part/ids_NK.npy").write_bytes(b"cut by a kill")
    first = build_train_set(folder, training.HEAD, examples, small, None)
    assert not (tmp_path / "set.part").exists()
    again = build_train_set(folder, training.HEAD, examples[:3], small, None)
    assert np.array_equal(first.targets.ids_NK, again.targets.ids_NK)
