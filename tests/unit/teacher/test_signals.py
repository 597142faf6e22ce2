from __future__ import annotations

from pathlib import Path

import pytest
import tiny_teacher as tiny
import torch
from tiny_stage import HEAD, ORIGIN, ROOM, WHOLE, recipe, samples

from overproof.core.artifact import Artifact
from overproof.core.disk import temporary
from overproof.core.errors import TrustError
from overproof.student.initial import initial
from overproof.teacher import signals
from overproof.teacher.answers import made_of
from overproof.teacher.cache import SignalCache, describe, shard_file, write_shard
from overproof.teacher.kept import Spread, TopK
from overproof.teacher.local import Teacher
from overproof.teacher.origins import Loader
from overproof.teacher.signals import (
    answer_rows,
    cache,
    shard_signals,
    target_mask,
    write_signals,
)

KEPT = TopK(6, 4)


def described(folder: Path, kept: TopK = KEPT) -> SignalCache:
    describe(folder, kept, ORIGIN, torch.zeros(1, 1))
    return SignalCache(folder, ORIGIN)


def joined(parts: list[Spread]) -> Spread:
    return Spread(*map(torch.cat, zip(*parts, strict=True)))


@pytest.mark.parametrize("prompts", [False, True])
def test_signals_are_the_models_own_distribution_at_every_target(prompts: bool) -> None:
    model, examples = tiny.model(), tiny.examples(20)
    got = shard_signals(model, HEAD, examples, ROOM, WHOLE if prompts else KEPT)
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
        found = shard_signals(model, HEAD, some, ROOM, WHOLE)
        write_shard(shard_file(tmp_path, number), WHOLE, found)
    described(tmp_path, WHOLE)
    got = joined(list(SignalCache(tmp_path, ORIGIN, answer_rows(examples))))
    wanted = shard_signals(model, HEAD, examples, ROOM, KEPT).spread()
    torch.testing.assert_close(got.tail_N, wanted.tail_N, rtol=1e-3, atol=1e-4)
    assert len(got.tail_N) == sum(len(one.answer) for one in examples)


def test_shards_are_kept_and_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SHARD_EXAMPLES", 4)
    model, examples = tiny.model(), tiny.examples(10)

    def write() -> None:
        write_signals(
            model, HEAD, examples, tmp_path, length=ROOM, kept=KEPT, progress=tiny.meter()
        )

    write()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"signals-{n:05d}.safetensors" for n in range(3)]
    made = described(tmp_path)
    shards = list(made)
    assert len(shards) == 3
    whole = joined(shards)
    one = shard_signals(model, HEAD, examples, ROOM, KEPT)
    torch.testing.assert_close(whole.tail_N, one.tail_N.exp(), rtol=1e-3, atol=1e-4)
    before = files[0].stat().st_mtime_ns
    temporary(shard_file(tmp_path, 1)).write_bytes(b"half a shard, cut by a kill")
    files[1].unlink()
    write()
    assert files[0].stat().st_mtime_ns == before
    assert all(map(torch.equal, whole, joined(list(made))))


@pytest.mark.parametrize("field", [*ORIGIN, "signals"])
def test_a_cache_made_of_something_else_is_refused_by_name(tmp_path: Path, field: str) -> None:
    described(tmp_path)
    with pytest.raises(TrustError, match="made of something else") as caught:
        SignalCache(tmp_path, {**ORIGIN, field: "another"})
    assert caught.value.details == (f"{field}: got {ORIGIN.get(field)}, wanted another",)


def test_signals_kept_while_sampling_are_taken_over_without_the_teacher(tmp_path: Path) -> None:
    def load(_: int) -> Teacher:
        raise AssertionError("the teacher has spoken already")

    kept = shard_signals(tiny.model(), HEAD, tiny.examples(10), ROOM, WHOLE)
    made = samples(tmp_path, recipe(), kept)
    stage = cache(Loader(load), made, recipe(), {"teacher": tiny.teacher().resource}, tmp_path)
    (found,) = SignalCache(stage.path, made_of(made, recipe())).signals()
    assert all(map(torch.equal, found.arrays, kept.arrays))
    assert stage.facts == {"positions": len(kept)}
    name = shard_file(tmp_path, 0).name
    assert stage.file(name).samefile(made.path / name)  # the disk holds them once


@pytest.mark.parametrize("kind", ["top-k", "sampled", "exact"])
def test_answers_without_signals_are_read_by_the_teacher_once_more(
    tmp_path: Path, kind: str
) -> None:
    teacher = tiny.teacher()
    asked = recipe(f"signals={{kind: {kind}}}")
    made = samples(tmp_path, asked, None)
    stage = cache(tiny.loads(teacher), made, asked, {"teacher": teacher.resource}, tmp_path)
    found = SignalCache(stage.path, made_of(made, asked))
    wanted = shard_signals(teacher.half, HEAD, tiny.examples(10), ROOM, found.kept)
    (spread,) = found
    own = wanted.spread(teacher.half.lm_head.weight)
    torch.testing.assert_close(spread.tail_N, own.tail_N, rtol=1e-3, atol=1e-4)
    assert spread.probs_NK.shape == own.probs_NK.shape
    assert stage.manifest["times"]["measured"]["tokens_per_second"] > 0
    assert (stage.path / "head.safetensors").is_file() == (kind == "exact")
    other = recipe(f"signals={{kind: {kind}, temperature: 2}}")
    with pytest.raises(TrustError, match="made of something else") as caught:
        SignalCache(stage.path, made_of(made, other))
    assert caught.value.details[0].startswith("signals: got ")


def test_the_student_is_cut_by_the_answers_alone(tmp_path: Path) -> None:
    """Signals inside the prompts are for training: vocabulary, layers and weights stay the same."""
    teacher = tiny.teacher()
    made = samples(tmp_path, recipe(), None)
    cut: list[Artifact] = []
    for prompts in ("true", "false"):
        asked = recipe(
            f"signals.prompts={prompts}", "signals.tail_draws=0", "student.layers=2",
            "student.mlp_width=null", "student.vocabulary=290", "student.calibration_tokens=40",
        )  # fmt: skip
        store = tmp_path / prompts
        stage = cache(tiny.loads(teacher), made, asked, {"teacher": teacher.resource}, store)
        cut.append(initial(lambda: teacher, made, stage, asked, teacher.resource, store))
    one, other = cut
    assert one.facts == other.facts
    assert (
        one.file("model.safetensors").read_bytes() == other.file("model.safetensors").read_bytes()
    )
