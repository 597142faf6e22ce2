"""Training throughput and what it buys: our trainer against a plain loop.

    python benchmarks/train.py RUN [--steps 40]

RUN is the folder of a finished run (`out/demo`): both start from its initial student and train
on its samples. The plain loop is what most people write first, see _plain.py. Both take the same
steps over the same examples, with the same optimizer and rates; both are then evaluated on the
held-out prompts. Start of our worker processes is included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from overproof.core import device

device.prepare()

from _finished import finished  # noqa: E402
from _ours import Ours  # noqa: E402
from _plain import plain  # noqa: E402
from _results import keep  # noqa: E402
from overproof.core import artifact  # noqa: E402
from overproof.core.console import note  # noqa: E402
from overproof.student import initial  # noqa: E402
from overproof.teacher.answers import read  # noqa: E402


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    run = finished(parser)
    steps, teacher = run.given.steps, run.teacher()
    answers = read(artifact.load(run.stages / "samples"))
    start = initial.load(run.stages / "initial")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Ours.of(
            run, answers, start, [f"train.steps={steps}"], Path(folder) / "examples",
            prompts=run.recipe.signals.prompts,
        )  # fmt: skip
        learned = trainer.learned(steps)
        runs = {"ours": trainer.train(steps)}
        runs["plain"] = plain(start, teacher, answers, trainer.recipe, learned)
    rates = {name: one.whole_speed for name, one in runs.items()}
    note(", ".join(f"{name}: {rate:.0f} tokens/s" for name, rate in rates.items()))
    models = {name: one.model for name, one in runs.items()}
    found = run.evaluate(teacher, answers, start.vocabulary, models)
    numbers = {
        "learned_tokens": sum(learned.tokens),
        "learned_tokens_per_second": {name: round(value, 1) for name, value in rates.items()},
        "ratio": round(rates["ours"] / rates["plain"], 2),
        "kl_nats_per_token": {name: found[name]["kl_nats_per_token"] for name in models},
    }
    result = keep("train", numbers)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
