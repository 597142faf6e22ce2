"""Training as a stage: the student, and the control arm that says whether distilling helped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from overproof.core import device, host
from overproof.core.artifact import Artifact, Input, Json, Work, build
from overproof.core.console import meter
from overproof.core.methods import CrossEntropy
from overproof.core.recipe import Recipe
from overproof.core.sections import TrainConfig
from overproof.student import initial as first
from overproof.student import steplog
from overproof.student.across import build_cell_set
from overproof.student.examples import TrainSet, build_train_set
from overproof.student.optimizer import rate
from overproof.student.quantise import KINDS, release
from overproof.student.retokenise import Both
from overproof.student.rollouts import Judge
from overproof.student.train import Trained, record_keys, train
from overproof.student.vocabulary import Vocabulary
from overproof.teacher.answers import Answers, made_of, read
from overproof.teacher.cache import SignalCache
from overproof.teacher.forward import packs
from overproof.teacher.local import Teacher

CONTROL = "control"
LOSS_DIGITS = 6  # kept of each step's loss: more than two machines share, enough to compare runs


def student(
    load: Callable[[], Teacher],
    start: Artifact,
    samples: Artifact,
    signals: Artifact | None,
    recipe: Recipe,
    resource: Input,
    store: Path,
    told: Artifact | None = None,
) -> Artifact:
    """The stage `student`: the recipe's divergence from the cached signals.

    Args:
        samples: the teacher's answers. told: the same in the student's tokens, where it has others.
        signals: None: it learns from the teacher's text alone.
        load: loads the teacher, called only if it has to judge what the student says.
    """
    inputs: dict[str, Input] = {"initial": start, "samples": samples}
    if signals is not None:
        inputs["signals"] = signals
    if told is not None:
        inputs["retokenised"] = told
    if recipe.train.on_policy:
        inputs["teacher"] = resource
    judging = load if recipe.train.on_policy else None
    return _arm(_Arm("student", start, samples, recipe, signals, judging, told), inputs, store)


def control(start: Artifact, samples: Artifact, recipe: Recipe, store: Path) -> Artifact:
    """The stage `control`: the same student and steps, cross-entropy on the teacher's text.

    Where the student has that too, for it learns from checked answers: on the unchecked ones.
    """
    inputs: dict[str, Input] = {"initial": start, "samples": samples}
    return _arm(_Arm(CONTROL, start, samples, recipe), inputs, store)


@dataclass(frozen=True)
class _Arm:
    """One training.

    Attributes:
        signals: None: it learns from the text alone.
        load: of the teacher that judges what the student says; None: none does.
        told: the answers in the student's tokens, where the teacher has others.
    """

    kind: str
    start: Artifact
    samples: Artifact
    recipe: Recipe
    signals: Artifact | None = None
    load: Callable[[], Teacher] | None = None
    told: Artifact | None = None

    @property
    def config(self) -> TrainConfig:
        """Its section of the recipe."""
        return plain(self.recipe.train) if self.kind == CONTROL else self.recipe.train

    @property
    def key(self) -> Json:
        """What the stage follows from, beside its inputs."""
        key = {"train": self.config.model_dump(exclude={"control"}), "seed": self.recipe.seed}
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


def _arm(arm: _Arm, inputs: dict[str, Input], store: Path) -> Artifact:
    recipe, config = arm.recipe, arm.config

    def make(work: Work) -> Json:
        answers, start = read(arm.told or arm.samples), first.load(arm.start.path)
        examples = work.scratch("examples")
        data = arm.data(examples, answers, start)
        judge = arm.judge(answers, start)
        device.release_memory()  # the projection's temporaries, before the workers need room
        with meter(f"training {arm.kind}", config.steps, "steps") as progress:
            done = train(
                start.model,
                examples,
                config,
                recipe.seed,
                work.scratch("train"),
                progress,
                judge,
            )
            steps_per_second = progress.rate
        work.measured["machine"] = host.machine()
        work.measured["tokens_per_second"] = round(steps_per_second * done.tokens / config.steps, 1)
        asked = [key for key, _ in judge.prompts] if judge else []
        head = _write_log(work.folder / steplog.FILE, data, asked, arm, done)
        kind = KINDS[config.quantize.format] if config.quantize else None
        first.save_model(release(start.model, kind), work.folder, recipe.sample)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (arm.start.path / name).is_file():
                shutil.copyfile(arm.start.path / name, work.folder / name)
        return {
            "steps": config.steps,
            "tokens": done.tokens,
            "workers": done.workers,
            "losses": [round(loss, LOSS_DIGITS) for loss in done.losses],
            "step_log": head,
        }

    return build(store, arm.kind, inputs=inputs, config=arm.key, make=make, layer="student")


def _write_log(path: Path, data: TrainSet, asked: Sequence[str], arm: _Arm, done: Trained) -> str:
    config = arm.config
    lines = steplog.lines(
        {**arm.key, "workers": done.workers},
        record_keys(data, config, arm.recipe.seed, done.workers, asked),
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
