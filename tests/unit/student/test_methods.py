"""Every kind of signals with divergences that go with it, from the stage `signals` to a student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import torch
import training
from safetensors.torch import load_file
from tiny_stage import HEAD, STUDENT_HEAD, recipe, samples

from overproof.core.artifact import Artifact
from overproof.core.blocks import kind_of
from overproof.core.errors import UsageError
from overproof.core.recipe import Recipe
from overproof.student import arms, steplog
from overproof.student.examples import build_train_set
from overproof.student.initial import initial, load
from overproof.student.losses import divergence_of
from overproof.student.quantise import stored
from overproof.student.rollouts import Judge, Rollouts, Shares
from overproof.teacher.answers import made_of, read
from overproof.teacher.cache import SignalCache
from overproof.teacher.signals import cache

SHAPE = (
    "student.layers=2", "student.mlp_width=null", "student.vocabulary=290",
    "student.calibration_tokens=40", "train.steps=60", "train.sequences=2",
    "train.learning_rate=0.02",
)  # fmt: skip
COUNT = 40
SHARES = Shares(prompts=COUNT, answers=4, workers=1, ahead=2, steps=9, seed=0)
OWN = "{warm_start: 0.1, fraction: 0.5, ahead: 2}"


def stages(store: Path, asked: Recipe) -> dict[str, Artifact]:
    teacher = tiny.teacher()
    made = samples(store, asked, None, COUNT)
    signals = cache(tiny.loads(teacher), made, asked, {"teacher": teacher.resource}, store)
    start = initial(lambda: teacher, made, signals, asked, teacher.resource, store)
    return {"samples": made, "signals": signals, "initial": start}


@pytest.mark.parametrize(
    ("signals", "made_small"),
    [
        ("{kind: sampled, draws: 30}", "{kind: forward-kl}"),
        ("{kind: exact}", "{kind: reverse-kl}"),
        ("{kind: exact, temperature: 2, prompts: false}", "{kind: jsd}"),
        ("{kind: top-k, top_k: 8}", "{kind: alpha-beta, alpha: 0.5, beta: 0.5}"),
    ],
)
def test_the_student_learns(tmp_path: Path, signals: str, made_small: str) -> None:
    asked = recipe(f"signals={signals}", f"train.divergence={made_small}", *SHAPE)
    made = stages(tmp_path, asked)
    losses = learned(made, asked, tmp_path).facts["losses"]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-15:]) < 0.85 * np.mean(losses[:15])


def learned(made: dict[str, Artifact], asked: Recipe, store: Path, load=tiny.teacher) -> Artifact:
    resource = tiny.teacher().resource
    (found,) = arms.students(
        load, made["initial"], made["samples"], made["signals"], asked, resource, store
    )
    return found


def compared(
    made: dict[str, Artifact], asked: Recipe, store: Path, student: Artifact | None = None
) -> dict[str, tuple[Artifact, ...]]:
    """The control arms; the student is asked only by those of equal time."""
    of = student or made["initial"]
    return arms.controls(made["initial"], made["samples"], made["signals"], of, asked, store)


def test_the_student_learns_from_its_own_text(tmp_path: Path) -> None:
    asked = recipe("signals={kind: sampled}", f"train.on_policy={OWN}", *SHAPE)
    made = stages(tmp_path, asked)
    student = learned(made, asked, tmp_path)
    own = [asked.train.own_step(step) is not None for step in range(60)]
    losses = np.array(student.facts["losses"])
    assert np.isfinite(losses).all()
    for which in (np.array(own), ~np.array(own)):
        assert which.sum() >= 20
        assert np.mean(losses[which][-8:]) < losses[which][0]
    log = steplog.read(student.file(steplog.FILE), student.facts["step_log"])
    assert [("said" in line) for line in log[1:-1]] == own
    assert any(one["name"] in ("teacher", "tiny") for one in student.manifest["inputs"])


def test_the_student_begins_without_what_the_teacher_is_shown(tmp_path: Path) -> None:
    """In its text, in that of its own that the teacher judges, and in the control arm's."""
    asked = recipe("signals={kind: exact}", f"train.on_policy={OWN}", *SHAPE)
    made = stages(tmp_path, asked)
    said, vocabulary = read(made["samples"]), load(made["initial"].path).vocabulary
    assert said.student_prefix == HEAD[:STUDENT_HEAD] != said.prefix == HEAD
    signals = SignalCache(made["signals"].path, made_of(made["samples"], asked))
    data = arms.signalled_set(tmp_path / "set", said, vocabulary, signals, asked)
    head = vocabulary.spell(said.student_prefix)
    assert tuple(data.prefix) == head
    judge = Judge.of(tiny.teacher(), vocabulary, said, said.train, asked)
    assert (judge.prefix, judge.student_prefix) == (said.prefix, said.student_prefix)
    assert Rollouts(0, SHARES, tiny.model(), judge, asked.train).prefix == head


def test_cross_entropy_learns_from_the_text_alone(tmp_path: Path) -> None:
    """Checked answers are learned from; the control arm has those that were not checked."""
    plain = ("train.divergence={kind: cross-entropy}", "sample.verified=true", *SHAPE)
    asked = recipe("signals={kind: sampled}", *plain)
    made = stages(tmp_path, asked)
    student = learned(made, asked, tmp_path)
    (control,) = compared(made, asked, tmp_path)["control"]
    # Here nothing was checked, so both texts are one.
    assert student.facts["losses"] == control.facts["losses"]
    assert student.sha256 != control.sha256
    (same,) = compared(made, recipe(*SHAPE), tmp_path)["control"]
    assert same.facts["losses"] == control.facts["losses"]
    with pytest.raises(UsageError, match="what a control arm has"):
        recipe("train.divergence={kind: cross-entropy}")


def test_a_student_for_four_bits_is_released_as_these(tmp_path: Path) -> None:
    asked = recipe(
        "signals={kind: exact}", "train.hidden={weight: 0.5}", "train.quantize={start: 0.5}",
        "export.targets=[gguf-q8_0, gguf-q4_0]", *SHAPE, "train.steps=4",
    )  # fmt: skip
    student = learned(stages(tmp_path, asked), asked, tmp_path)
    log = steplog.read(student.file(steplog.FILE), student.facts["step_log"])
    assert log[0]["train"]["quantize"] == {"format": "q4_0", "start": 0.5}
    assert log[0]["train"]["hidden"] == {"weight": 0.5}
    weights = load_file(student.file("model.safetensors"))
    assert not any("projection" in name for name in weights)
    for name, values in weights.items():
        wanted = stored(name, values, "Q4_0")
        if kind_of("Q4_0", name, values.shape, 1.0) == "Q4_0":
            assert torch.equal(wanted.bfloat16(), values), name
        elif values.ndim > 1:
            assert not torch.equal(wanted.bfloat16(), values), name


def test_nobody_loads_the_teacher_for_a_student_that_it_does_not_judge(tmp_path: Path) -> None:
    asked = recipe("signals={kind: sampled}", *SHAPE, "train.steps=2")
    made = stages(tmp_path, asked)

    def load():
        raise AssertionError("it was loaded")

    inputs = learned(made, asked, tmp_path, load).manifest["inputs"]
    assert all(one["name"] not in ("teacher", "tiny") for one in inputs)


def test_the_control_arm_is_the_same_whatever_the_method(tmp_path: Path) -> None:
    found = set()
    for made_small in ("divergence={kind: reverse-kl}", f"on_policy={OWN}", "weight_decay=0"):
        asked = recipe("signals={kind: exact}", f"train.{made_small}", *SHAPE)
        made = stages(tmp_path, asked)
        found.add(compared(made, asked, tmp_path)["control"][0].sha256)
    assert len(found) == 1


@pytest.mark.parametrize("prompts", [False, True])
def test_targets_from_hidden_states_are_those_of_all_tokens(tmp_path: Path, prompts: bool) -> None:
    """But for states in bf16; inside a spelling both are the next piece."""
    vocabulary = training.vocabulary(280)
    found = []
    for kind in ("exact", "top-k, top_k: 10000"):
        asked = recipe(f"signals={{kind: {kind}, prompts: {str(prompts).lower()}}}", *SHAPE)
        made = samples(tmp_path / kind[:3], asked, None, COUNT)
        stage = cache(
            tiny.loads(tiny.teacher()),
            made,
            asked,
            {"teacher": tiny.teacher().resource},
            tmp_path / kind[:3],
        )
        data = build_train_set(
            tmp_path / kind[:3] / "set", HEAD, read(made).train, vocabulary,
            SignalCache(stage.path, made_of(made, asked)), prompts=prompts,
        )  # fmt: skip
        which = np.flatnonzero(data.weight_N)
        make = torch.Generator().manual_seed(0)
        logits = torch.randn(len(which), vocabulary.size, generator=make)
        found.append(divergence_of(logits, data.targets.at(which)))
    (loss, grad), (wanted, wanted_grad) = found
    assert len(loss) > 100
    torch.testing.assert_close(loss, wanted, rtol=0.02, atol=0.01)
    torch.testing.assert_close(grad, wanted_grad, rtol=0, atol=0.01)
