from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_teacher as tiny
import torch

from overproof.core.artifact import Artifact, Json, Work, build
from overproof.core.config import Recipe, find_recipe, load_recipe
from overproof.teacher import signals
from overproof.teacher.distribution import SignalCache, Signals, shard_file, write_shard
from overproof.teacher.local import Teacher
from overproof.teacher.signals import answer_mask, cache, shard_signals, write_signals

HEAD = (1, 7, 8)
ROOM = 40


def test_signals_are_the_models_own_distribution_at_every_answer_position() -> None:
    model, examples = tiny.model(), tiny.examples(20)
    got = shard_signals(model, HEAD, examples, ROOM, 6)
    start = 0
    for example in examples:
        log_probs = tiny.alone(model, [*HEAD, *example.tokens]).log_softmax(-1)
        wanted = log_probs[[len(HEAD) + place for place in example.targets]]
        rows = slice(start, start + len(example.answer))
        top, _ = wanted.topk(6, -1)
        torch.testing.assert_close(got.log_probs_NK[rows].float(), top, rtol=1e-3, atol=1e-4)
        own = wanted.gather(-1, got.ids_NK[rows].long())
        torch.testing.assert_close(got.log_probs_NK[rows].float(), own, rtol=1e-3, atol=1e-4)
        start += len(example.answer)
    assert start == len(got.tail_N) == answer_mask(examples).sum()


def test_kept_mass_and_tail_make_one() -> None:
    got = shard_signals(tiny.model(), HEAD, tiny.examples(20), ROOM, 6)
    total = got.log_probs_NK.float().exp().sum(-1) + got.tail_N.exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_more_kept_than_there_are_tokens_is_all_of_them() -> None:
    got = shard_signals(tiny.model(), HEAD, tiny.examples(3), ROOM, 10_000)
    assert got.ids_NK.shape[1] == tiny.TOKENS


def test_shards_are_kept_and_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SHARD_EXAMPLES", 4)
    model, examples = tiny.model(), tiny.examples(10)

    def write() -> None:
        write_signals(model, HEAD, examples, tmp_path, length=ROOM, top_k=5, progress=tiny.meter())

    def read() -> Signals:
        shards = list(SignalCache(tmp_path))
        assert len(shards) == 3
        return Signals.joined(shards)

    write()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"signals-{n:05d}.safetensors" for n in range(3)]
    whole = read()
    assert whole.ids_NK.shape[1] == 5
    one = shard_signals(model, HEAD, examples, ROOM, 5)
    torch.testing.assert_close(whole.tail_N, one.tail_N, rtol=1e-4, atol=1e-5)
    before = files[0].stat().st_mtime_ns
    (tmp_path / "signals-00001.tmp").write_bytes(b"half a shard, cut by a kill")
    files[1].unlink()
    write()
    assert files[0].stat().st_mtime_ns == before
    again = read()
    assert all(torch.equal(getattr(whole, n), getattr(again, n)) for n in vars(whole))


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


def recipe() -> Recipe:
    overrides = ["signals.top_k=6", f"train.sequence_length={ROOM}"]
    return load_recipe(find_recipe("support"), overrides)


def test_signals_kept_while_sampling_are_taken_over_without_the_teacher(tmp_path: Path) -> None:
    def load() -> Teacher:
        raise AssertionError("the teacher has spoken already")

    kept = shard_signals(tiny.model(), HEAD, tiny.examples(10), ROOM, 6)
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
    wanted = shard_signals(teacher.half, HEAD, tiny.examples(10), ROOM, 6)
    torch.testing.assert_close(found.tail_N, wanted.tail_N, rtol=1e-4, atol=1e-5)
    assert stage.manifest["times"]["measured"]["tokens_per_second"] > 0
