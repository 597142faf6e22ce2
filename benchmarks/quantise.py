"""Q4_0 with and without learning for it: one initial student, one cache, equal steps.

    python benchmarks/quantise.py RUN [--steps 80] [--seeds 2] [--start 0.5] [--prompts 200]

RUN is the folder of a finished run (`out/demo`). With each seed its initial student is trained
twice by the run's recipe: with the weights as they are, and from `start` of the steps on with those
of the build. Both are saved as a release holds them and exported; each file is read back by
transformers, and measured on the teacher's held-out answers as every report measures. Then
llama.cpp runs the files beside the saved models, as for a receipt. Students are kept in
RUN/quantise: a second call with the same arguments only measures.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from _finished import Finished, finished  # noqa: E402
from _results import keep  # noqa: E402
from overproof.core import artifact  # noqa: E402
from overproof.core.config import with_overrides  # noqa: E402
from overproof.core.console import meter  # noqa: E402
from overproof.core.digest import sha256_json  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.release import parity, quality, targets  # noqa: E402
from overproof.release.export import TOKENIZER, reference  # noqa: E402
from overproof.student import initial  # noqa: E402
from overproof.student.arms import signalled_set  # noqa: E402
from overproof.student.quantise import KINDS, release  # noqa: E402
from overproof.student.train import train  # noqa: E402
from overproof.teacher.answers import made_of, read  # noqa: E402
from overproof.teacher.cache import SignalCache  # noqa: E402
from overproof.teacher.forward import mixed  # noqa: E402

BUILDS = ("gguf-f16", "gguf-q4_0")
PLAIN = "as they are"
METRICS = ("kl_nats_per_token", "top1_agreement")
ADDED = "export.targets=[gguf-q8_0, gguf-q4_0, gguf-f16]"


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--start", type=float, default=0.5)
    parser.add_argument("--prompts", type=int, default=200, help="held-out ones, at most")
    run = finished(parser)
    asked = {name: vars(run.given)[name] for name in ("steps", "seeds", "start", "prompts")}
    students = trained(run, run.folder / "quantise")
    numbers = {"recipe": run.recipe.name, **asked, "arms": measured(run, students)}
    print(json.dumps(keep("quantise", numbers), indent=2))


def trained(run: Finished, folder: Path) -> dict[str, Path]:
    """Train and export each arm with each seed; the folders of the students."""
    samples = artifact.load(run.stages / "samples")
    answers, start = read(samples), initial.load(run.stages / "initial")
    signals = SignalCache(run.stages / "signals", made_of(samples, run.recipe))
    examples, found = folder / "examples", dict[str, Path]()
    signalled_set(examples, answers, start.vocabulary, signals, run.recipe)
    quantize = f"train.quantize={{format: q4_0, start: {run.given.start}}}"
    for seed in range(run.given.seeds):
        for arm, overrides in {PLAIN: [], "for q4_0": [ADDED, quantize]}.items():
            recipe = with_overrides(run.recipe, [f"train.steps={run.given.steps}", *overrides])
            found[f"{arm}, seed {seed}"] = at = folder / sha256_json(
                [recipe.train.model_dump(mode="json"), seed]
            )
            if not (at / f"{BUILDS[-1]}.gguf").is_file():
                one(recipe, seed, start, run.stages / "initial", examples, at)
    return found


def one(
    recipe: Recipe, seed: int, start: initial.Initial, first: Path, examples: Path, folder: Path
) -> None:
    """Train a student, save it as a release holds it, and export it."""
    model = copy.deepcopy(start.model)
    with meter(f"training, seed {seed}", recipe.train.steps, "steps") as bar:
        train(model, examples, recipe.train, seed, folder.with_suffix(".scratch"), bar)
    quantize = recipe.train.quantize
    kind = KINDS[quantize.format] if quantize else None
    initial.save_model(release(model, kind), folder, recipe.sample)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(first / file, folder / file)
    for build in BUILDS:
        targets.find(build).write(folder, folder / f"{build}.gguf")


def measured(run: Finished, students: dict[str, Path]) -> dict[str, Any]:
    """Each build against the teacher, and against the model that it was made of."""
    samples = artifact.load(run.stages / "samples")
    start = artifact.load(run.stages / "initial")
    teacher, answers = run.teacher(), read(samples)
    vocabulary = initial.load(start.path).vocabulary
    models = {
        f"{name}/{build}": mixed(read_back(folder / f"{build}.gguf"))
        for name, folder in students.items()
        for build in BUILDS
    }
    few = replace(answers, heldout=answers.heldout[: run.given.prompts])
    found = run.evaluate(teacher, few, vocabulary, models)
    chosen = parity.choose(quality.heldout_texts(samples, start))
    rows: dict[str, Any] = {}
    for name, folder in students.items():
        files = {build: folder / f"{build}.gguf" for build in BUILDS}
        receipts = parity.measure(files, folder / TOKENIZER, chosen, reference(folder, chosen))
        plain = f"{PLAIN}, {name.rpartition(', ')[2]}/gguf-f16"
        f16 = found[plain]["top1_agreement"]["value"]
        rows[name] = {}
        for build in BUILDS:
            row = {metric: found[f"{name}/{build}"][metric] for metric in METRICS}
            row["of_the_plain_f16_agreement"] = round(row["top1_agreement"]["value"] / f16, 4)
            row["bytes"] = files[build].stat().st_size
            rows[name][build] = row | {"receipt": vars(receipts[build])}
    return rows


def read_back(file: Path) -> Any:
    """The model that a GGUF file holds, in fp32, as transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


if __name__ == "__main__":
    main()
