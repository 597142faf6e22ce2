"""Shapes of equal size against each other: before the first step, and after some.

    python benchmarks/shapes.py RUN [--steps 200] [--parameters 60000000]

RUN is the folder of a finished run (`out/demo`). Each arm cuts its own student out of the run's
base in one direction alone, as far as the size asks, with the run's vocabulary; the last takes the
shape that a budget of that size chooses. All train by the run's recipe on its signals, and are
measured on the held-out answers, as every report does.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

from _finished import Finished, finished  # noqa: E402
from _results import keep  # noqa: E402
from overproof.core import artifact  # noqa: E402
from overproof.core.console import meter, note  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.core.sections import Budget, StudentConfig  # noqa: E402
from overproof.student import initial  # noqa: E402
from overproof.student.arms import signalled_set  # noqa: E402
from overproof.student.budget import fitted  # noqa: E402
from overproof.student.dimensions import Dimensions  # noqa: E402
from overproof.student.train import train  # noqa: E402
from overproof.teacher.answers import made_of, read  # noqa: E402
from overproof.teacher.cache import SignalCache  # noqa: E402
from overproof.teacher.forward import mixed  # noqa: E402
from overproof.teacher.kept import spread_temperature  # noqa: E402
from overproof.teacher.signals import answer_rows  # noqa: E402

STEP = 32  # of the widths tried: what Q8_0 can hold
METRICS = ("kl_nats_per_token", "top1_agreement")


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--parameters", type=int, default=60_000_000)
    run = finished(parser)
    rows = compare(run)
    numbers = {"recipe": run.recipe.name, "steps": run.given.steps, "arms": rows}
    print(json.dumps(keep("shapes", numbers), indent=2))


def shapes(base: Dimensions, student: StudentConfig, size: int) -> dict[str, StudentConfig]:
    """For each direction the largest shape of at most that size; those that fit at all.

    Heads alone cannot shed that much: they go as far as they can, and layers do the rest.
    """
    whole = student.model_copy(
        update={"layers": None, "mlp_width": None, "kv_heads": None, "hidden": None}
    )
    widths = range(base.mlp_width, 0, -STEP)
    options: dict[str, Iterator[dict[str, int]]] = {
        "layers": ({"layers": n} for n in range(base.layers, 0, -1)),
        "mlp_width": ({"mlp_width": n} for n in widths),
        "hidden": ({"hidden": n} for n in range(base.hidden, 0, -STEP)),
        "heads and layers": (
            {"kv_heads": max(1, base.kv_heads - 1), "layers": n} for n in range(base.layers, 0, -1)
        ),
        "heads and mlp_width": (
            {"kv_heads": max(1, base.kv_heads - 1), "mlp_width": n} for n in widths
        ),
    }
    found = {}
    for name, tried in options.items():
        for one in tried:
            wanted = whole.model_copy(update=one)
            if base.cut(wanted).parameters <= size:
                found[name] = wanted
                break
    limited = whole.model_copy(update={"budget": Budget(parameters=size)})
    found["budget"] = fitted(limited, base, None).student
    return found


def compare(run: Finished) -> dict[str, dict[str, Any]]:
    """Cut, measure, train and measure each arm."""
    teacher, samples = run.teacher(), artifact.load(run.stages / "samples")
    answers, recipe = read(samples), run.recipe
    wanted = shapes(Dimensions.of(teacher.model.config), recipe.student, run.given.parameters)
    rows: dict[str, dict[str, Any]] = {}
    for name, student in wanted.items():
        began = time.perf_counter()
        asked = recipe.model_copy(
            update={
                "student": student,
                "train": recipe.train.model_copy(update={"steps": run.given.steps}),
            }
        )
        only = answer_rows(answers.train) if recipe.signals.prompts else None
        signals = SignalCache(run.stages / "signals", made_of(samples, asked), only)
        made = initial.make(
            teacher, teacher, answers.prefix, answers.train, signals, student,
            recipe.train.sequence_length, spread_temperature(recipe.signals),
        )  # fmt: skip
        models = {"untrained": mixed(copy.deepcopy(made.model))}
        if run.given.steps:
            whole = SignalCache(run.stages / "signals", made_of(samples, asked))
            models["trained"] = mixed(_trained(name, made, asked, answers, whole))
        found = run.evaluate(teacher, answers, made.vocabulary, models)
        rows[name] = made.facts["student"] | {
            arm: {metric: found[arm][metric] for metric in METRICS} for arm in models
        }
        rows[name]["seconds"] = round(time.perf_counter() - began)
        note(f"{name}: {rows[name]}")
    return rows


def _trained(
    name: str, made: initial.Initial, recipe: Recipe, answers: Any, signals: SignalCache
) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        examples = Path(folder) / "examples"
        signalled_set(examples, answers, made.vocabulary, signals, recipe)
        with meter(name, recipe.train.steps, "steps") as bar:
            train(made.model, examples, recipe.train, recipe.seed, Path(folder) / "train", bar)
    return made.model


if __name__ == "__main__":
    main()
