"""TRL's two trainers beside ours: the same student, teacher, text, optimizer and learning rates.

Each gets the settings that suit it best on this machine, found by trying (`tune`).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _child import TUNED, ChildError, run
from _pace import WARM, Learned, Run
from overproof.core import device
from overproof.core.console import note
from overproof.core.recipe import Recipe
from overproof.student.initial import Initial, load_model
from overproof.teacher import local
from overproof.teacher.answers import Answers

TRAINERS = ("gkd", "distillation")
PACKAGES = ("trl", "accelerate", "datasets")
INSTALL = "pip install -c constraints.txt -e '.[bench]'"
SPLITS = (1, 2, 4)  # micro-batches a step that are tried
TRIED_STEPS = WARM + 2


@dataclass(frozen=True)
class Setting:
    """How a trainer is run.

    Attributes:
        processes: that share a step, as torch.distributed does it; 1: threads share it.
        splits: micro-batches of each process, whose gradients are added up.
        tuned: with the waiting and the memory that `overproof.core.device.prepare` sets for us;
            else as the machine has them.
    """

    processes: int = 1
    splits: int = 1
    tuned: bool = True

    def fits(self, batch: int) -> bool:
        """Whether a step's examples can be shared out so."""
        return not batch % (self.processes * self.splits)


@dataclass(frozen=True)
class Peer:
    """One of TRL's trainers, ready to be run.

    Attributes:
        trainer: its name in `TRAINERS`.
        folder: holds student, teacher, tokenizer and rows, see `prepare`.
        batch: examples a step. recipe: of our own training.
        tokens: learned in each step.
    """

    trainer: str
    folder: Path
    batch: int
    recipe: Recipe
    tokens: list[int]
    setting: Setting = Setting()

    def train(self, steps: int) -> Run:
        """Train the initial student for so many steps.

        Raises:
            ChildError: it failed.
        """
        config = self.recipe.train.model_copy(update={"steps": steps})
        saved = self.folder / f"trained-{self.trainer}"
        job = {
            "trainer": self.trainer,
            **{name: str(self.folder / name) for name in ("student", "teacher", "tokenizer")},
            "rows": str(self.folder / "rows.json"),
            "train": config.model_dump(mode="json"),
            "seed": self.recipe.seed,
            "batch": self.batch,
            "micro": self.batch // (self.setting.processes * self.setting.splits),
            "accumulation": self.setting.splits,
            "processes": self.setting.processes,
            "threads": device.cores() // self.setting.processes,
            "bf16": device.processor().bf16,
            "save": str(saved),
        }
        threads = {"OMP_NUM_THREADS": str(job["threads"])}
        more = threads | (TUNED if self.setting.tuned else {})
        ends = run("_trl.py", job, environment=more, processes=self.setting.processes)
        return Run(self.tokens[:steps], ends, load_model(saved))


def missing() -> str | None:
    """What to type where TRL is not installed; None: it is."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed; type: {INSTALL}" if absent else None


def prepare(
    folder: Path, start: Initial, teacher: local.Teacher, answers: Answers, learned: Learned
) -> tuple[int, list[int]]:
    """Write what TRL reads.

    The examples come in the order in which our trainer learns from them, as many a step as ours
    has in the mean, rounded down to a multiple of 4; within a step the longest first, so that
    micro-batches hold little padding.

    Returns:
        examples a step, and the tokens learned in each step.
    """
    shutil.rmtree(folder, ignore_errors=True)
    start.model.save_pretrained(folder / "student")
    teacher.half.save_pretrained(folder / "teacher")
    teacher.tokenizer.save_pretrained(folder / "tokenizer")
    order = [number for step in learned.examples for number in step]
    batch = max(4, len(order) // len(learned.examples) // 4 * 4)
    rows, tokens = list[dict[str, Any]](), list[int]()
    for at in range(0, len(order) - batch + 1, batch):
        few = [answers.train[number] for number in order[at : at + batch]]
        few.sort(key=lambda one: -len(one.tokens))
        for one in few:
            asked = [*answers.prefix, *one.prompt]
            rows.append({"input_ids": [*asked, *one.answer], "prompt_tokens": len(asked)})
        tokens.append(sum(len(one.answer) for one in few))
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return batch, tokens


def tune(peer: Peer) -> tuple[Peer, list[dict[str, Any]]]:
    """The peer with its fastest settings, one after another; and all that was tried."""
    tried = list[dict[str, Any]]()
    best, speed = peer, 0.0
    for options in (_environments, _processes, _splits):
        for setting in options(best.setting, peer.batch):
            candidate = replace(peer, setting=setting)
            row: dict[str, Any] = asdict(setting)
            try:
                row["tokens_per_second"] = round(candidate.train(TRIED_STEPS).speed, 1)
            except ChildError as error:
                row["failed"] = str(error).splitlines()[-1]
            tried.append(row)
            note(f"{peer.trainer}: {row}")
            if row.get("tokens_per_second", 0.0) > speed:
                best, speed = candidate, row["tokens_per_second"]
    if not speed:
        raise ChildError(f"{peer.trainer} cannot be run here: {tried[0]['failed']}")
    return best, tried


Options = Callable[[Setting, int], Iterator[Setting]]


def _environments(setting: Setting, _batch: int) -> Iterator[Setting]:
    yield setting
    yield replace(setting, tuned=not setting.tuned)


def _processes(setting: Setting, batch: int) -> Iterator[Setting]:
    together = replace(setting, processes=device.cores())
    if together != setting and together.fits(batch):
        yield together


def _splits(setting: Setting, batch: int) -> Iterator[Setting]:
    for splits in SPLITS:
        other = replace(setting, splits=splits)
        if other != setting and other.fits(batch):
            yield other
