from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_teacher as tiny
import torch

from overproof.core.artifact import Artifact, Json, Work, build
from overproof.core.config import Recipe, find_recipe, load_recipe
from overproof.core.disk import temporary
from overproof.student.initial import initial
from overproof.teacher import signals
from overproof.teacher.distribution import Kept, SignalCache, Signals, draw, shard_file, write_shard
from overproof.teacher.local import Teacher
from overproof.teacher.signals import (
    answer_rows,
    cache,
    shard_signals,
    target_mask,
    write_signals,
)

HEAD = (1, 7, 8)
ROOM = 40
KEPT = Kept(6, 4)
WHOLE = Kept(6, 4, prompts=True)


@pytest.mark.parametrize("prompts", [False, True])
def test_signals_are_the_models_own_distribution_at_every_target(prompts: bool) -> None:
    model, examples = tiny.model(), tiny.examples(20)
    got = shard_signals(model, HEAD, examples, ROOM, KEPT._replace(prompts=prompts))
    start = 0
    for example in examples:
        log_probs = tiny.alone(model, [*HEAD, *example.tokens]).log_softmax(-1)
        targets = example.targets(prompt=prompts)
        wanted = log_probs[[len(HEAD) + place for place in targets]]
        rows = slice(start, start + len(targets))
        top, _ = wanted.topk(6, -1)
        torch.testing.assert_close(got.log_probs_NK[rows].float(), top, rtol=1e-3, atol=1e-4)
        own = wanted.gather(-1, got.ids_NK[rows].long())
        torch.testing.assert_close(got.log_probs_NK[rows].float(), own, rtol=1e-3, atol=1e-4)
        start += len(targets)
    assert start == len(got.tail_N) == target_mask(examples, prompts=prompts).sum()


def test_the_answers_signals_are_found_among_those_of_prompts(tmp_path: Path) -> None:
    model, examples = tiny.model(), tiny.examples(9)
    for number, some in enumerate((examples[:4], examples[4:])):
        write_shard(shard_file(tmp_path, number), shard_signals(model, HEAD, some, ROOM, WHOLE))
    found = Signals.joined(list(SignalCache(tmp_path, answer_rows(examples))))
    wanted = shard_signals(model, HEAD, examples, ROOM, KEPT)
    torch.testing.assert_close(found.tail_N, wanted.tail_N, rtol=1e-4, atol=1e-5)
    assert len(found.tail_N) == sum(len(one.answer) for one in examples)


def test_kept_mass_and_tail_make_one() -> None:
    got = shard_signals(tiny.model(), HEAD, tiny.examples(20), ROOM, KEPT)
    total = got.log_probs_NK.float().exp().sum(-1) + got.tail_N.exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_drawn_tokens_are_of_the_tail_and_follow_from_the_examples() -> None:
    got = shard_signals(tiny.model(), HEAD, tiny.examples(20), ROOM, KEPT)
    assert got.drawn_NR.shape == (len(got.tail_N), 4)
    assert not (got.drawn_NR[:, :, None] == got.ids_NK[:, None, :]).any()
    assert ((got.drawn_NR >= 0) & (got.drawn_NR < tiny.TOKENS)).all()
    again = shard_signals(tiny.model(), HEAD, tiny.examples(20), ROOM, KEPT)
    assert torch.equal(got.drawn_NR, again.drawn_NR)


@pytest.mark.parametrize("tokens", [5, 64, 65, 1000])
@pytest.mark.parametrize("count", [1, 7, 32])
def test_draws_are_unbiased_and_differ_by_less_than_one(tokens: int, count: int) -> None:
    """Averaged over all offsets a token's number is its share; at each offset it is next to it."""
    mass = torch.rand(tokens, generator=torch.Generator().manual_seed(tokens)) ** 4
    mass[:: max(2, tokens // 7)] = 0.0
    offsets = (torch.arange(4000) + 0.5) / 4000
    drawn = draw(mass.expand(len(offsets), -1), offsets, count)
    assert (mass[drawn] > 0).all()
    numbers = torch.zeros(len(offsets), tokens).scatter_add_(1, drawn, torch.ones(drawn.shape))
    wanted = count * mass / mass.sum()
    assert (numbers - wanted).abs().max() < 1 + 1e-3
    torch.testing.assert_close(numbers.mean(0), wanted, rtol=0, atol=1.5e-3)


def test_nothing_to_draw_from() -> None:
    assert draw(torch.rand(3, 70), torch.rand(3), 0).shape == (3, 0)
    drawn = draw(torch.zeros(3, 70), torch.rand(3), 5)
    assert ((drawn >= 0) & (drawn < 70)).all()


def test_the_last_point_stays_before_the_end() -> None:
    """In fp32 an offset near one rounds the last of many points up to the whole."""
    mass = torch.zeros(1, 128)
    mass[0, 3:60] = 0.1
    drawn = draw(mass, torch.tensor([1 - 1e-9], dtype=torch.float64), 32)
    assert (mass[0, drawn[0]] > 0).all()
    assert drawn.max() == 59


@pytest.mark.parametrize("kept", [Kept(6), Kept(10_000, 3)])
def test_signals_without_draws(tmp_path: Path, kept: Kept) -> None:
    got = shard_signals(tiny.model(), HEAD, tiny.examples(5), ROOM, kept)
    assert got.drawn_NR.shape == (len(got.tail_N), 0)
    write_shard(shard_file(tmp_path, 0), got)
    (again,) = SignalCache(tmp_path)
    assert all(map(torch.equal, got.arrays, again.arrays))


def test_signals_as_bytes() -> None:
    got = shard_signals(tiny.model(), HEAD, tiny.examples(5), ROOM, KEPT)
    data, count = got.to_bytes(), len(got.tail_N)
    assert len(data) == count * KEPT.bytes
    again = Signals.from_bytes(data, count, KEPT.drawn)
    assert all(map(torch.equal, got.arrays, again.arrays))
    for wrong in (data[:-1], data + b"\0" * count, b""):
        with pytest.raises(ValueError, match="are no signals"):
            Signals.from_bytes(wrong, count, KEPT.drawn)


def test_more_kept_than_there_are_tokens_is_all_of_them() -> None:
    got = shard_signals(tiny.model(), HEAD, tiny.examples(3), ROOM, Kept(10_000, 3))
    assert got.ids_NK.shape[1] == tiny.TOKENS


def test_shards_are_kept_and_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SHARD_EXAMPLES", 4)
    model, examples = tiny.model(), tiny.examples(10)

    def write() -> None:
        write_signals(
            model, HEAD, examples, tmp_path, length=ROOM, kept=KEPT, progress=tiny.meter()
        )

    def read() -> Signals:
        shards = list(SignalCache(tmp_path))
        assert len(shards) == 3
        return Signals.joined(shards)

    write()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"signals-{n:05d}.safetensors" for n in range(3)]
    whole = read()
    assert (whole.ids_NK.shape[1], whole.drawn_NR.shape[1]) == KEPT[:2]
    one = shard_signals(model, HEAD, examples, ROOM, KEPT)
    torch.testing.assert_close(whole.tail_N, one.tail_N, rtol=1e-4, atol=1e-5)
    before = files[0].stat().st_mtime_ns
    temporary(shard_file(tmp_path, 1)).write_bytes(b"half a shard, cut by a kill")
    files[1].unlink()
    write()
    assert files[0].stat().st_mtime_ns == before
    again = read()
    assert all(map(torch.equal, whole.arrays, again.arrays))


def samples(store: Path, kept: Signals | None) -> Artifact:
    """A finished stage `samples` of ten conversations, with or without signals."""

    def make(work: Work) -> Json:
        rows = [
            {"key": one.key, "prompt": one.prompt, "answer": one.answer}
            for one in tiny.examples(10)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (work.folder / "train.jsonl").write_text(lines)
        (work.folder / "heldout.jsonl").write_text("")
        (work.folder / "prefix.json").write_text(json.dumps(HEAD))
        (work.folder / "prompts.json").write_text("{}")
        if kept is not None:
            write_shard(shard_file(work.folder, 0), kept)
        return {}

    return build(store, "samples", inputs={}, config={}, make=make)


def recipe(*more: str) -> Recipe:
    overrides = ["signals.top_k=6", "signals.tail_draws=4", f"train.sequence_length={ROOM}"]
    return load_recipe(find_recipe("support"), [*overrides, *more])


def test_signals_kept_while_sampling_are_taken_over_without_the_teacher(tmp_path: Path) -> None:
    def load() -> Teacher:
        raise AssertionError("the teacher has spoken already")

    kept = shard_signals(tiny.model(), HEAD, tiny.examples(10), ROOM, WHOLE)
    made = samples(tmp_path, kept)
    stage = cache(load, made, recipe(), tiny.teacher().resource, tmp_path)
    (found,) = SignalCache(stage.path)
    assert torch.equal(found.log_probs_NK, kept.log_probs_NK)
    assert stage.facts == {"positions": len(kept.tail_N)}
    name = shard_file(tmp_path, 0).name
    assert stage.file(name).samefile(made.file(name))  # the disk holds them once


def test_answers_without_signals_are_read_by_the_teacher_once_more(tmp_path: Path) -> None:
    teacher = tiny.teacher()
    made = samples(tmp_path, None)
    stage = cache(lambda: teacher, made, recipe(), teacher.resource, tmp_path)
    (found,) = SignalCache(stage.path)
    wanted = shard_signals(teacher.half, HEAD, tiny.examples(10), ROOM, WHOLE)
    torch.testing.assert_close(found.tail_N, wanted.tail_N, rtol=1e-4, atol=1e-5)
    assert stage.manifest["times"]["measured"]["tokens_per_second"] > 0


def test_the_student_is_cut_by_the_answers_alone(tmp_path: Path) -> None:
    """Signals inside the prompts are for training: vocabulary, layers and weights stay the same."""
    teacher = tiny.teacher()
    made = samples(tmp_path, None)
    cut: list[Artifact] = []
    for prompts in ("true", "false"):
        asked = recipe(
            f"signals.prompts={prompts}", "signals.tail_draws=0", "student.layers=2",
            "student.mlp_width=null", "student.vocabulary=290", "student.calibration_tokens=40",
        )  # fmt: skip
        store = tmp_path / prompts
        stage = cache(lambda: teacher, made, asked, teacher.resource, store)
        cut.append(initial(lambda: teacher, made, stage, asked, teacher.resource, store))
    one, other = cut
    assert one.facts == other.facts
    assert (
        one.file("model.safetensors").read_bytes() == other.file("model.safetensors").read_bytes()
    )
