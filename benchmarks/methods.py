"""Methods against each other: one initial student, one cache, equal steps, other sections.

    python benchmarks/methods.py RUN [--steps 120] [--arm NAME SECTION.FIELD=VALUE ...]

RUN is the folder of a finished run (`out/demo`). Each arm trains its initial student by the run's
recipe with its own overrides, and is then measured twice: on the teacher's held-out answers, as
every report does, and on answers of its own to the same prompts, each token judged by the teacher.
With `--keep NAME` the result goes to results/NAME.json. All weights against adapters:

    python benchmarks/methods.py RUN --keep lora --arm all --arm lora "train.lora={rank: 16}" \
        train.learning_rate=0.001
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from _finished import Finished, finished  # noqa: E402
from _results import keep  # noqa: E402
from overproof.core import artifact  # noqa: E402
from overproof.core.config import with_overrides  # noqa: E402
from overproof.core.console import meter, note  # noqa: E402
from overproof.core.methods import OnPolicy, ReverseKl  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.data.pack import longest_first, pack  # noqa: E402
from overproof.release.tally import Estimate  # noqa: E402
from overproof.student import initial, lora  # noqa: E402
from overproof.student.arms import signalled_set  # noqa: E402
from overproof.student.divergences import FORWARD_KL, divergence  # noqa: E402
from overproof.student.losses import divergence_of  # noqa: E402
from overproof.student.rollouts import Judge, Rollouts, Shares  # noqa: E402
from overproof.student.train import train  # noqa: E402
from overproof.teacher.answers import made_of, read  # noqa: E402
from overproof.teacher.cache import SignalCache  # noqa: E402
from overproof.teacher.forward import logits_at  # noqa: E402

ARMS: dict[str, list[str]] = {
    "forward-kl": [],
    "jsd": ["train.divergence={kind: jsd, beta: 0.5}"],
    "reverse-kl": ["train.divergence={kind: reverse-kl}"],
    "own text, reverse-kl": ["train.on_policy={warm_start: 0.5, fraction: 0.5}"],
    "own text, forward-kl": [
        "train.on_policy={warm_start: 0.5, fraction: 0.5, divergence: {kind: forward-kl}}"
    ],
}  # fmt: skip
SEQUENCES = 4


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--arm", nargs="+", action="append", help="a name and its overrides")
    parser.add_argument("--keep", default="methods", help="name of the result's file")
    run = finished(parser)
    arms = {name: more for name, *more in run.given.arm} if run.given.arm else ARMS
    numbers = {"recipe": run.recipe.name, "steps": run.given.steps, "arms": compare(run, arms)}
    print(json.dumps(keep(run.given.keep, numbers), indent=2))


def compare(run: Finished, arms: dict[str, list[str]]) -> dict[str, Any]:
    """Train and measure each arm."""
    teacher, samples = run.teacher(), artifact.load(run.stages / "samples")
    answers, start = read(samples), initial.load(run.stages / "initial")
    models: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        signals = SignalCache(run.stages / "signals", made_of(samples, run.recipe))
        examples = Path(folder) / "examples"
        data = signalled_set(examples, answers, start.vocabulary, signals, run.recipe)
        for name, overrides in arms.items():
            recipe = with_overrides(run.recipe, [f"train.steps={run.given.steps}", *overrides])
            judge = Judge.of(teacher, start.vocabulary, answers, answers.train, recipe)
            models[name] = copy.deepcopy(start.model)
            began = time.perf_counter()
            with meter(name, recipe.train.steps, "steps") as bar:
                train(
                    models[name], examples, recipe.train, recipe.seed,
                    Path(folder) / name, bar, judge if recipe.train.on_policy else None,
                )  # fmt: skip
            rows[name] = {"overrides": overrides, "seconds": round(time.perf_counter() - began)}
            rows[name]["learned_parameters"] = lora.trainable(models[name])
            if recipe.train.lora:
                lora.merge(models[name])
            note(f"{name}: {rows[name]['seconds']} s for {len(data.keys):,} answers")
    found = run.evaluate(teacher, answers, start.vocabulary, models)
    for name, model in models.items():
        judge = Judge.of(teacher, start.vocabulary, answers, answers.heldout, run.recipe)
        for metric in ("kl_nats_per_token", "top1_agreement"):
            rows[name][metric] = found[name][metric]
        rows[name]["own_text"] = own_text(model, judge, run.recipe)
    return rows


@torch.inference_mode()
def own_text(model: Any, judge: Judge, recipe: Recipe) -> dict[str, Any]:
    """What the teacher thinks of the model's own answers, one to each prompt.

    Drawn at temperature 1 from all tokens: what is measured is the model's distribution.
    """
    config = recipe.train.model_copy(update={"on_policy": OnPolicy()})
    everyone = Shares(len(judge.prompts), len(judge.prompts), 1, 1, 1, recipe.seed)
    # The measure is the distribution itself, whatever the student learned from.
    rollouts = Rollouts(0, everyone, model, replace(judge, temperature=1.0), config)
    (drawn,) = rollouts.draw(0)
    data = rollouts.judged(drawn)
    packed = pack(
        data.prefix.tolist(), data.examples, config.sequence_length, longest_first(data.examples)
    )
    learned_N = data.weight_N > 0
    made_small = {"forward": FORWARD_KL, "reverse": divergence(ReverseKl(kind="reverse-kl"))}
    sums = {name: torch.zeros(int(learned_N.sum())).double() for name in made_small}
    places = np.flatnonzero(learned_N)
    for where, logits_PV, _ in logits_at(model, packed, learned_N, SEQUENCES):
        target = data.targets.at(places[where])
        for name, small in made_small.items():
            found_P, _ = divergence_of(logits_PV.float(), target, small)
            sums[name][torch.from_numpy(where)] = found_P.double()
    of_example = np.searchsorted(np.cumsum(data.lengths), places, side="right")
    counts = np.bincount(of_example, minlength=len(data.lengths)).astype(np.float64)
    draws = np.random.default_rng(recipe.seed).integers(
        0, len(counts), (recipe.evaluate.bootstrap, len(counts))
    )
    found: dict[str, Any] = {"answer_tokens": round(float(counts.mean()), 1)}
    for name, values in sums.items():
        each = np.bincount(of_example, values.numpy(), len(counts)).astype(np.float64)
        estimate = Estimate.of(each, counts, draws).interval(recipe.evaluate.confidence)
        found[f"{name}_kl_nats_per_token"] = estimate
    return found


if __name__ == "__main__":
    main()
