"""Training throughput and what it buys: our trainer against a plain loop.

    python benchmarks/train.py RUN [--steps 40]

RUN is the folder of a finished run (`out/demo`): both start from its initial student and train
on its samples. The plain loop is what most people write first: a live teacher, the divergence
over the whole vocabulary, one padded example a row, bf16 autocast, AdamW, all cores as OpenMP
threads. Both take the same number of steps, over the same number of learned tokens, with the same
optimizer and rates; both are then evaluated on the held-out prompts.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from _finished import finished  # noqa: E402
from _results import keep  # noqa: E402
from overproof.core import artifact  # noqa: E402
from overproof.core.config import Recipe  # noqa: E402
from overproof.core.console import meter, note  # noqa: E402
from overproof.student import initial  # noqa: E402
from overproof.student.arms import signalled_set  # noqa: E402
from overproof.student.examples import (  # noqa: E402
    StudentExample,
    TrainSet,
    respell,
)
from overproof.student.optimizer import optimizers, rate, set_rate  # noqa: E402
from overproof.student.train import batches, train  # noqa: E402
from overproof.teacher import local  # noqa: E402
from overproof.teacher.answers import Answers, made_of, read  # noqa: E402
from overproof.teacher.cache import SignalCache  # noqa: E402
from overproof.teacher.example import Example  # noqa: E402


def learned_tokens(data: TrainSet, recipe: Recipe) -> int:
    """Tokens whose prediction our trainer learns in the given steps: answers, and prompts if so."""
    total = 0
    for step, batch in enumerate(batches(data, recipe.train, recipe.seed)):
        if step >= recipe.train.steps:
            return total
        total += int(data.weight_N[batch.source_RT[batch.predicts_RT]].sum())
    return total


def plain(
    start: initial.Initial, teacher: local.Teacher, answers: Answers, recipe: Recipe, budget: int
) -> tuple[Any, int, float]:
    """The plain loop; returns the student, the learned tokens seen and the seconds taken."""
    torch.set_num_threads(device.cores())
    student, live = start.model.train(), teacher.half
    vocabulary = start.vocabulary
    columns = torch.from_numpy(vocabulary.student_ids_U)
    made = optimizers(recipe.train, list(student.named_parameters()))
    order = np.random.default_rng(recipe.seed).permutation(len(answers.train))
    head = list(vocabulary.spell(answers.student_prefix))
    seen, began, at = 0, time.perf_counter(), 0
    for step in range(recipe.train.steps):
        # As many examples as bring it up to our trainer's mean.
        few, spelled = list[Example](), list[StudentExample]()
        while not few or seen < budget * (step + 1) / recipe.train.steps:
            few.append(answers.train[order[at % len(order)]])
            spelled.append(respell(few[-1], vocabulary, prompt=recipe.signals.prompts))
            seen += sum(place >= 0 for place in spelled[-1].teacher_positions)
            seen += sum(spelled[-1].spelled)  # our trainer counts these pieces too
            at += 1
        theirs = [list(answers.prefix) + list(one.tokens) for one in few]
        ours = [head + one.tokens for one in spelled]
        with torch.inference_mode():
            logits = live(**_padded(theirs)).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mine = student(**_padded(ours)).logits
        loss, count = torch.zeros(()), 0
        for row, (one, words) in enumerate(zip(few, spelled, strict=True)):
            wanted = one.targets(prompt=recipe.signals.prompts)
            there = len(answers.prefix) + np.array(wanted)
            here = len(head) + np.flatnonzero(np.array(words.teacher_positions) >= 0)
            p = torch.softmax(logits[row, there].float(), -1).clone()
            target = torch.zeros(len(there), vocabulary.size).index_add_(1, columns, p)
            log_q = torch.log_softmax(mine[row, here].float(), -1)
            loss = loss + (torch.xlogy(target, target) - target * log_q).sum()
            count += len(there)
        set_rate(made, rate(recipe.train, step))
        (loss / count).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.train.clip)
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()
    return student.eval(), seen, time.perf_counter() - began


def _padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
    }


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    run = finished(parser)
    recipe, stages = run.recipe, run.stages
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"steps": run.given.steps})}
    )
    teacher = run.teacher()
    samples = artifact.load(stages / "samples")
    answers = read(samples)
    start = initial.load(stages / "initial")
    signals = SignalCache(stages / "signals", made_of(samples, recipe))
    models, rates = {}, {}
    with tempfile.TemporaryDirectory() as folder, meter("ours", run.given.steps, "steps") as bar:
        examples = Path(folder) / "examples"
        data = signalled_set(examples, answers, start.vocabulary, signals, recipe)
        budget = learned_tokens(data, recipe)
        model, began = copy.deepcopy(start.model), time.perf_counter()
        train(model, examples, recipe.train, recipe.seed, Path(folder), bar)
        rates["ours"] = budget / (time.perf_counter() - began)
        models["ours"] = model.eval()
    note(f"ours: {rates['ours']:.0f} tokens/s")
    models["plain"], seen, seconds = plain(start, teacher, answers, recipe, budget)
    rates["plain"] = seen / seconds
    note(f"plain: {rates['plain']:.0f} tokens/s")
    found = run.evaluate(teacher, answers, start.vocabulary, models)
    numbers = {
        "learned_tokens": budget,
        "learned_tokens_per_second": {name: round(value, 1) for name, value in rates.items()},
        "ratio": round(rates["ours"] / rates["plain"], 2),
        "kl_nats_per_token": {name: found[name]["kl_nats_per_token"] for name in models},
    }
    result = keep("train", numbers)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
