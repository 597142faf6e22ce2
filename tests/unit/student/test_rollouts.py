from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import torch
import training
from hypothesis import given, settings
from hypothesis import strategies as st

from overproof.core.methods import OnPolicy
from overproof.student.divergences import divergence
from overproof.student.examples import TrainSet
from overproof.student.losses import divergence_of
from overproof.student.rollouts import (
    Judge,
    Rollouts,
    Shares,
    answers_a_step,
    teacher_tokens,
    turns,
)
from overproof.student.train import Trained, record_keys, train

SMALL = 300  # tokens of a student that has to spell some of its teacher's


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollouts") / "examples"
    training.data(folder)
    return folder


def judge(size: int = tiny.TOKENS, **changes) -> Judge:
    return replace(training.judge(size), **changes)


def config(**changes):
    policy = OnPolicy(**{"warm_start": 0.25, "fraction": 0.5, "reuse": 2} | changes)
    return training.config(on_policy=policy)


def rollouts(of: Judge, rank: int = 0, *, workers: int = 1, answers: int = 5, reuse: int = 2):
    student = tiny.model(layers=2, seed=1, vocabulary=of.vocabulary.size)
    shares = Shares(len(of.prompts), answers, workers, reuse, 7)
    return Rollouts(rank, shares, student, of, config(reuse=reuse))


@settings(deadline=None)
@given(
    steps=st.integers(1, 300),
    warm=st.floats(0, 1),
    fraction=st.floats(0.01, 1),
)
def test_the_schedule_warms_up_and_then_keeps_its_fraction(steps, warm, fraction) -> None:
    wanted = training.config(
        steps=steps, on_policy=OnPolicy(warm_start=warm, fraction=fraction, reuse=3)
    )
    numbers = [wanted.own_step(step) for step in range(steps)]
    own = [number for number in numbers if number is not None]
    assert own == list(range(len(own)))
    first = int(np.ceil(warm * steps - 1e-9))
    assert all(number is None for number in numbers[:first])
    assert abs(len(own) - fraction * (steps - first)) < 1 + 1e-6


def test_no_on_policy_section_no_on_policy_step() -> None:
    assert all(training.config().own_step(step) is None for step in range(12))


def test_every_prompt_is_asked_once_before_any_is_asked_again() -> None:
    found = list(itertools.chain.from_iterable(turns(10, 3, start, 4) for start in range(0, 60, 4)))
    assert Counter(turn.prompt for turn in found) == dict.fromkeys(range(10), 6)
    assert all(turn.draw == place // 10 for place, turn in enumerate(found))
    assert [turn.prompt for turn in found[:10]] != [turn.prompt for turn in found[10:20]]
    assert found == turns(10, 3, 0, 60)


@settings(deadline=None, max_examples=30)
@given(workers=st.integers(1, 5), answers=st.integers(1, 6), reuse=st.integers(1, 4))
def test_workers_share_a_drawing_without_overlap(workers, answers, reuse) -> None:
    shares = Shares(11, answers, workers, reuse, 3)
    for drawing in range(3):
        own = [shares.drawing(drawing, rank) for rank in range(workers)]
        assert all(len(step) == answers for steps in own for step in steps)
        for step in range(reuse):
            of_all = shares.step(drawing * reuse + step)
            assert of_all == [turn for steps in own for turn in steps[step]]
            assert len(set(of_all)) == len(of_all)


def test_a_step_of_own_text_is_about_as_long_as_one_of_the_teachers(examples) -> None:
    data, wanted = TrainSet.map(examples), training.config(sequences=6)
    each = answers_a_step(data, wanted, 2)
    room = 6 * (training.ROOM - len(training.HEAD))
    assert 2 * each * data.lengths.mean() == pytest.approx(room, abs=2 * data.lengths.mean())


def test_the_target_is_the_teachers_whole_distribution_after_what_the_student_said() -> None:
    of = judge()
    packed, data, _ = rollouts(of).next(0)
    assert data.keys.tolist() == [key.encode() for key in dict.fromkeys(keys(of, 0))]
    student = tiny.model(layers=2, seed=5)
    seen = 0
    for row in range(len(packed.tokens_RT)):
        for segment in range(1, packed.segments_RT[row].max() + 1):
            where = np.flatnonzero(packed.segments_RT[row] == segment)
            source = packed.source_RT[row, where]
            text = [*training.HEAD, *packed.tokens_RT[row, where].tolist()]
            theirs = tiny.alone(of.model, text)[len(training.HEAD) :]
            ours = tiny.alone(student, text)[len(training.HEAD) :]
            learned = data.weight_N[source] > 0
            loss, _ = divergence_of(
                ours[learned],
                data.targets.at(source[learned]),
                divergence(config().on_policy.divergence),
            )
            log_q, log_p = ours.log_softmax(-1), theirs.log_softmax(-1)
            wanted = (log_q.exp() * (log_q - log_p)).sum(-1)[learned]
            torch.testing.assert_close(loss, wanted, rtol=0.03, atol=0.01)  # bf16 states
            seen += int(learned.sum())
    assert seen == data.weight_N.sum() > 10


def keys(of: Judge, number: int, answers: int = 5, workers: int = 1, reuse: int = 2) -> list[str]:
    shares = Shares(len(of.prompts), answers, workers, reuse, 7)
    return [of.prompts[turn.prompt][0] for turn in shares.step(number)]


def test_the_prompt_and_the_later_pieces_of_a_spelling_are_not_judged() -> None:
    of = judge(SMALL)
    _, data, _ = rollouts(of).next(0)
    ends = np.cumsum(data.lengths)
    for example, end in zip(data.examples, ends, strict=True):
        text = of.vocabulary.tokenizer.decode(example, skip_special_tokens=False)
        weight = data.weight_N[end - len(example) : end]
        prompt = next(ids for key, ids in of.prompts if text.startswith(spoken(of, ids)))
        own = [len(of.vocabulary.pieces(token)) for token in prompt]
        assert weight[: sum(own) - 1].sum() == 0
        answer = of.tokenizer.encode(text, add_special_tokens=False).ids
        assert weight.sum() <= len(answer)
        assert weight[-1] == 0


def spoken(of: Judge, ids) -> str:
    return of.tokenizer.decode(list(ids), skip_special_tokens=False)


def test_text_is_cut_as_the_teacher_cuts_it() -> None:
    of = judge(SMALL)
    text = "Where is my parcel? It was due on Monday."
    cut = of.tokenizer.encode(text).ids
    said = [piece for token in cut for piece in of.vocabulary.pieces(token)]
    assert len(said) > len(cut)
    assert teacher_tokens([*said, 0], of) == [*cut, 0]


def test_bytes_that_are_no_text_stand_for_themselves() -> None:
    of = judge()
    start = of.tokenizer.encode("Yes ").ids
    half = of.tokenizer.encode("é").ids[:1]
    assert of.tokenizer.decode(half) == "\ufffd"
    assert teacher_tokens([*start, *half, *start], of) == [*start, *half, *start]


def test_a_token_that_the_teacher_lacks_ends_them() -> None:
    of = judge()
    ids = of.vocabulary.teacher_ids_V.copy()
    ids[40] = -1
    half = of.tokenizer.encode("é").ids[:1]
    lacking = judge(vocabulary=replace(of.vocabulary, teacher_ids_V=ids))
    assert teacher_tokens([*half, 50, 40, 60], lacking) == [*half, 50]


def test_a_tokenizer_that_changes_the_text_is_not_asked() -> None:
    from tokenizers import Tokenizer, normalizers

    lower = Tokenizer.from_str(tiny.tokenizer().to_str())
    lower.normalizer = normalizers.Lowercase()
    of = judge(tokenizer=lower)
    said = tiny.tokenizer().encode("Where is my parcel?").ids
    assert teacher_tokens(said, of) == said


def test_an_answer_that_no_sequence_holds_is_cut() -> None:
    of = judge(max_new_tokens=training.ROOM)
    packed, data, _ = rollouts(of).next(0)
    assert data.lengths.max() <= training.ROOM - len(training.HEAD)
    assert packed.tokens_RT.shape[1] == training.ROOM


def test_a_drawing_is_used_step_after_step_and_then_made_anew() -> None:
    one = rollouts(judge())
    first = one.next(0)
    assert len(one.pending) == 1
    second = one.next(1)
    assert not one.pending
    assert first[2] != second[2]
    with torch.no_grad():
        for values in one.student.parameters():
            values.mul_(1.5)
    later = one.next(2)
    assert later[2] not in {first[2], second[2]}


def test_the_sampler_leaves_the_training_model_as_it_is() -> None:
    of = judge()
    student = tiny.model(layers=2, seed=1)
    before = student.config._attn_implementation
    made = Rollouts(0, Shares(30, 5, 1, 2, 7), student, of, config())
    made.next(0)
    assert student.config._attn_implementation == before
    assert {p.data_ptr() for p in made.student.parameters()} == {
        p.data_ptr() for p in student.parameters()
    }


def run(examples: Path, folder: Path, **changes):
    model = training.student()
    done = train(model, examples, config(**changes), 3, folder, tiny.meter(12), judge())
    return model, done


def test_equal_runs_say_and_learn_the_same(examples, tmp_path: Path) -> None:
    one, first = run(examples, tmp_path / "one")
    other, second = run(examples, tmp_path / "other")
    assert first == second
    assert list(first.said) == [4, 6, 8, 10]
    assert len(set(first.said.values())) == 4
    for name, values in one.state_dict().items():
        assert torch.equal(values, other.state_dict()[name])


def test_records_of_an_on_policy_step_are_those_that_were_asked(examples) -> None:
    data, names = TrainSet.map(examples), [key for key, _ in judge().prompts]
    found = list(record_keys(data, config(), 3, 2, names))
    assert len(found) == 12
    each = answers_a_step(data, config(), 2)
    for step, records in enumerate(found):
        own = config().own_step(step) is not None
        assert (len(records) == 2 * each) == own or not own
        assert set(records) <= set(names) or not own


def test_reverse_kl_falls_where_the_student_learns_from_its_own_text(
    examples, tmp_path: Path
) -> None:
    wanted = training.config(steps=40, on_policy=OnPolicy(warm_start=0.0, fraction=1.0, reuse=2))
    model = training.student()
    done = train(model, examples, wanted, 3, tmp_path, tiny.meter(40), judge())
    assert isinstance(done, Trained)
    assert np.mean(done.losses[-5:]) < 0.6 * np.mean(done.losses[:5])
