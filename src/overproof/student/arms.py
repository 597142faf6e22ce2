"""Training as a stage: the student, and the control arms that say whether distilling helped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overproof.core import device, host
from overproof.core.artifact import Artifact, Input, Json, Work, build
from overproof.core.console import meter
from overproof.core.methods import CrossEntropy
from overproof.core.recipe import Recipe
from overproof.core.sections import Control, TrainConfig
from overproof.student import initial as first
from overproof.student import lora, steplog
from overproof.student.across import build_cell_set
from overproof.student.examples import TrainSet, build_train_set
from overproof.student.optimizer import rate
from overproof.student.quantise import KINDS, release
from overproof.student.retokenise import Both
from overproof.student.rollouts import Judge
from overproof.student.train import Trained, Trainer, record_keys, train
from overproof.student.vocabulary import Vocabulary
from overproof.teacher.answers import Answers, made_of, read
from overproof.teacher.cache import SignalCache
from overproof.teacher.forward import packs
from overproof.teacher.local import Teacher

STUDENT, CONTROL = "student", "control"
LOSS_DIGITS = 6  # kept of each step's loss: more than two machines share, enough to compare runs


def demand(teacher: Teacher, base: Teacher, recipe: Recipe) -> None:
    """Refuse, before any work, a student that cannot be made of these or trained so.

    Args:
        base: what the student is cut from: the teacher itself, or another model.

    Raises:
        UsageError, StageError: see `initial.demand` and `lora.demand`.
    """
    first.demand(teacher, base, recipe.student)
    if recipe.train.lora:
        lora.demand(base.model, recipe.train.lora)


def students(
    load: Callable[[], Teacher],
    start: Artifact,
    samples: Artifact,
    signals: Artifact | None,
    recipe: Recipe,
    resource: Input,
    store: Path,
    by: Trainer = train,
    told: Artifact | None = None,
) -> tuple[Artifact, ...]:
    """The stages `student`: the recipe's divergence from the cached signals, once a seed.

    Args:
        samples: the teacher's answers. told: the same in the student's tokens, where it has others.
        signals: None: it learns from the teacher's text alone.
        load: loads the teacher, called only if it has to judge what the student says.
        by: what trains it, which is no part of its key (docs/adr/0031).
    """
    inputs: dict[str, Input] = {"initial": start, "samples": samples}
    if signals is not None:
        inputs["signals"] = signals
    if told is not None:
        inputs["retokenised"] = told
    if recipe.train.on_policy:
        inputs["teacher"] = resource
    judging = load if recipe.train.on_policy else None
    alike = _Arm(STUDENT, STUDENT, start, samples, recipe, recipe.train, 0, signals, judging)
    return tuple(
        _arm(replace(alike, turn=turn, told=told), inputs, store, by)
        for turn in range(recipe.train.seeds)
    )


def controls(
    start: Artifact,
    samples: Artifact,
    signals: Artifact | None,
    student: Artifact,
    recipe: Recipe,
    store: Path,
    by: Trainer = train,
) -> dict[str, tuple[Artifact, ...]]:
    """The stages of the control arms by name: cross-entropy on the teacher's text, once a seed.

    Where the student has that too, for it learns from checked answers: on the unchecked ones.

    1. That of equal steps comes first.
    2. Its pace says how many steps fit the seconds that the student took; the number is part of
       the configuration of the arms of equal time, whose inputs are what was measured.

    Args:
        student: of the first seed, as is all that is measured for this.
    """
    made = dict[str, tuple[Artifact, ...]]()
    entropy = plain(recipe.train)
    for wanted in sorted(recipe.train.controls, key=lambda one: one.equal != "steps"):
        inputs: dict[str, Input] = {"initial": start, "samples": samples}
        config, clock = entropy, None
        if wanted.equal != "steps":
            # 2.
            pace = made[CONTROL][0]
            counted = signals if wanted.equal == "time-with-signals" else None
            clock = clocked(student, pace, counted)
            config = entropy.model_copy(update={"steps": clock["steps"]})
            inputs |= {STUDENT: student, CONTROL: pace}
            inputs |= {"signals": counted} if counted else {}
        name = control_name(wanted)
        made[name] = tuple(
            _arm(
                _Arm(CONTROL, name, start, samples, recipe, config, turn, clock=clock),
                inputs,
                store,
                by,
            )
            for turn in range(recipe.train.seeds)
        )
    return made


def control_name(wanted: Control) -> str:
    """Of the stage of a control arm, for the first seed."""
    return CONTROL if wanted.equal == "steps" else f"{CONTROL}-{wanted.equal}"


def stage_name(name: str, turn: int) -> str:
    """Of an arm's stage for one of the seeds, counted from 0."""
    return name if turn == 0 else f"{name}-seed-{turn + 1}"


def clocked(student: Artifact, pace: Artifact, signals: Artifact | None) -> Json:
    """How many steps of a control arm take as long as the student's training took.

    Args:
        pace: the control arm of equal steps.
        signals: whose seconds count as well; None: none's.

    Returns:
        `steps`, and what they follow from: `seconds` to fill, and `seconds_per_step`.
    """
    seconds = training_seconds(student)
    if signals is not None:
        seconds += float(signals.manifest["times"]["seconds"])
    each = training_seconds(pace) / int(pace.facts["steps"])
    return {
        "steps": max(1, round(seconds / each)),
        "seconds": round(seconds, 3),
        "seconds_per_step": round(each, 6),
    }


def training_seconds(arm: Artifact) -> float:
    """Seconds of an arm's steps, without what comes before and after them."""
    return float(arm.manifest["times"]["measured"]["seconds"])


@dataclass(frozen=True)
class _Arm:
    """One training.

    Attributes:
        kind: `student` or `control`. name: of its stage, for the first seed.
        config: as the recipe's section, or with other steps and cross-entropy.
        turn: which of the seeds, from 0.
        signals: None: it learns from the text alone.
        load: of the teacher that judges what the student says; None: none does.
        clock: what its steps follow from, where they are not the recipe's; see `clocked`.
        told: the answers in the student's tokens, where the teacher has others.
    """

    kind: str
    name: str
    start: Artifact
    samples: Artifact
    recipe: Recipe
    config: TrainConfig
    turn: int
    signals: Artifact | None = None
    load: Callable[[], Teacher] | None = None
    clock: Mapping[str, Any] | None = None
    told: Artifact | None = None

    @property
    def seed(self) -> int:
        """Of its own draws; the first is the recipe's."""
        return self.recipe.seed + self.turn

    @property
    def key(self) -> Json:
        """What the stage follows from, beside its inputs."""
        # As it is read again: JSON has lists where the section has tuples.
        section = self.config.model_dump(mode="json", exclude={"controls", "seeds"})
        key: Json = {"train": section, "seed": self.seed}
        key |= {"equal_time": dict(self.clock)} if self.clock else {}
        return key | ({"text": "unchecked"} if self.unchecked else {})

    @property
    def unchecked(self) -> bool:
        """Whether it learns from the answers as they were before they were checked."""
        return self.kind == CONTROL and self.recipe.by_text

    def data(self, folder: Path, answers: Answers, start: first.Initial) -> TrainSet:
        """What it trains on."""
        alone = not packs(start.model)
        if self.signals is None or self.recipe.by_text:
            text = answers.unchecked if self.unchecked else answers.train
            return build_train_set(
                folder, answers.student_prefix, text, start.vocabulary, None, alone=alone
            )
        signals = SignalCache(self.signals.path, made_of(self.samples, self.recipe))
        if self.told is not None:
            both = Both.read(self.samples, self.told, start.vocabulary)
            return cell_set(folder, both, start.vocabulary, signals, self.recipe, alone=alone)
        return signalled_set(folder, answers, start.vocabulary, signals, self.recipe, alone=alone)

    def judge(self, answers: Answers, start: first.Initial) -> Judge | None:
        """The teacher, where the student's own text is learned from."""
        if self.load is None:
            return None
        return Judge.of(self.load(), start.vocabulary, answers, answers.train, self.recipe)


def signalled_set(
    folder: Path,
    answers: Answers,
    vocabulary: Vocabulary,
    signals: SignalCache,
    recipe: Recipe,
    *,
    alone: bool = False,
) -> TrainSet:
    """The training set of the teacher's answers with its cached signals; see `build_train_set`."""
    return build_train_set(
        folder,
        answers.student_prefix,
        answers.train,
        vocabulary,
        signals,
        prompts=recipe.signals.prompts,
        temperature=recipe.signals.temperature,
        alone=alone,
    )


def cell_set(
    folder: Path,
    both: Both,
    vocabulary: Vocabulary,
    signals: SignalCache,
    recipe: Recipe,
    *,
    alone: bool = False,
) -> TrainSet:
    """The same where the teacher has other tokens; see `build_cell_set`."""
    return build_cell_set(
        folder,
        both,
        vocabulary,
        signals,
        prompts=recipe.signals.prompts,
        temperature=recipe.signals.temperature,
        alone=alone,
    )


def _arm(arm: _Arm, inputs: dict[str, Input], store: Path, by: Trainer) -> Artifact:
    recipe, config = arm.recipe, arm.config
    name = stage_name(arm.name, arm.turn)

    def make(work: Work) -> Json:
        answers, start = read(arm.told or arm.samples), first.load(arm.start.path)
        examples = work.scratch("examples")
        data = arm.data(examples, answers, start)
        judge = arm.judge(answers, start)
        device.release_memory()  # the projection's temporaries, before the workers need room
        with meter(f"training {name}", config.steps, "steps") as progress:
            done = by(
                start.model, examples, config, arm.seed, work.scratch("train"), progress, judge
            )
        work.measured["machine"] = host.machine()
        work.measured["seconds"] = round(done.seconds, 3)
        work.measured["tokens_per_second"] = round(done.tokens / done.seconds, 1)
        asked = [key for key, _ in judge.prompts] if judge else []
        head = _write_log(work.folder / steplog.FILE, data, asked, arm, done)
        learned = lora.trainable(start.model)
        if config.lora:
            lora.save(start.model, work.folder / lora.FOLDER)
            lora.merge(start.model)
        kind = KINDS[config.quantize.format] if config.quantize else None
        first.save_model(release(start.model, kind), work.folder, recipe.sample)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (arm.start.path / file).is_file():
                shutil.copyfile(arm.start.path / file, work.folder / file)
        return {
            "steps": config.steps,
            "tokens": done.tokens,
            "engine": done.engine,
            "workers": done.workers,
            "learned_parameters": learned,
            "losses": [round(loss, LOSS_DIGITS) for loss in done.losses],
            "step_log": head,
        }

    return build(
        store, arm.kind, inputs=inputs, config=arm.key, make=make, name=name, layer="student"
    )


def _write_log(path: Path, data: TrainSet, asked: Sequence[str], arm: _Arm, done: Trained) -> str:
    config = arm.config
    lines = steplog.lines(
        {**arm.key, "engine": done.engine, "workers": done.workers},
        record_keys(data, config, arm.seed, done.workers, asked),
        done.losses,
        [rate(config, step) for step in range(config.steps)],
        done.weights,
        done.said,
    )
    return steplog.write(path, lines)


def plain(config: TrainConfig) -> TrainConfig:
    """The same training by cross-entropy."""
    entropy = CrossEntropy(kind="cross-entropy")
    return config.model_copy(update={"divergence": entropy, "on_policy": None, "hidden": None})
