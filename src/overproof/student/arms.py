"""Training as a stage: the student, and the control arm that says whether distilling helped."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from overproof.core import device, host
from overproof.core.artifact import Artifact, Json, Work, build
from overproof.core.config import Recipe, TrainConfig
from overproof.core.console import meter
from overproof.core.methods import ForwardKl
from overproof.student import initial as first
from overproof.student import steplog
from overproof.student.examples import TrainSet, build_train_set
from overproof.student.optimizer import rate
from overproof.student.train import Trained, record_keys, train
from overproof.teacher.answers import made_of, read
from overproof.teacher.cache import SignalCache

LOSS_DIGITS = 6  # kept of each step's loss: more than two machines share, enough to compare runs


def student(
    start: Artifact, samples: Artifact, signals: Artifact, recipe: Recipe, store: Path
) -> Artifact:
    """The stage `student`: the recipe's divergence from the cached signals."""
    inputs = {"initial": start, "samples": samples, "signals": signals}
    return _arm("student", inputs, recipe, store)


def control(start: Artifact, samples: Artifact, recipe: Recipe, store: Path) -> Artifact:
    """The stage `control`: the same student and steps, cross-entropy on the teacher's text."""
    return _arm("control", {"initial": start, "samples": samples}, recipe, store)


def _arm(kind: str, inputs: dict[str, Artifact], recipe: Recipe, store: Path) -> Artifact:
    config = recipe.train if "signals" in inputs else plain(recipe.train)
    key = {"train": config.model_dump(exclude={"control"}), "seed": recipe.seed}

    def make(work: Work) -> Json:
        answers = read(inputs["samples"])
        start = first.load(inputs["initial"].path)
        signals = (
            SignalCache(inputs["signals"].path, made_of(inputs["samples"], recipe))
            if "signals" in inputs
            else None
        )
        examples = work.scratch("examples")
        data = build_train_set(
            examples,
            answers.prefix,
            answers.train,
            start.vocabulary,
            signals,
            prompts=signals is not None and recipe.signals.prompts,
            temperature=recipe.signals.temperature if signals else 1.0,
        )
        device.release_memory()  # the projection's temporaries, before the workers need room
        with meter(f"training {kind}", recipe.train.steps, "steps") as progress:
            done = train(
                start.model,
                examples,
                config,
                recipe.seed,
                work.scratch("train"),
                progress,
            )
            steps_per_second = progress.rate
        work.measured["machine"] = host.machine()
        work.measured["tokens_per_second"] = round(
            steps_per_second * done.tokens / recipe.train.steps, 1
        )
        head = _write_log(work.folder / steplog.FILE, data, config, key, done)
        first.save_model(start.model.to(torch.bfloat16), work.folder, recipe.sample)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (inputs["initial"].path / name).is_file():
                shutil.copyfile(inputs["initial"].path / name, work.folder / name)
        return {
            "steps": recipe.train.steps,
            "tokens": done.tokens,
            "workers": done.workers,
            "losses": [round(loss, LOSS_DIGITS) for loss in done.losses],
            "step_log": head,
        }

    return build(store, kind, inputs=inputs, config=key, make=make, layer="student")


def _write_log(path: Path, data: TrainSet, config: TrainConfig, key: Json, done: Trained) -> str:
    lines = steplog.lines(
        {**key, "workers": done.workers},
        record_keys(data, config, key["seed"]),
        done.losses,
        [rate(config, step) for step in range(config.steps)],
        done.weights,
    )
    return steplog.write(path, lines)


def plain(config: TrainConfig) -> TrainConfig:
    """The same training by cross-entropy: forward KL to a distribution on one token."""
    return config.model_copy(update={"divergence": ForwardKl()})
