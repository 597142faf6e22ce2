"""The arms of a finished run on more held-out prompts: intervals as narrow as one has time for.

    python benchmarks/heldout.py RUN [--prompts 1500]

RUN is the folder of a finished run (`out/demo`). The teacher answers so many prompts of its
held-out data, drawn as the run drew its own (which are the first of them), and each arm is measured
there as the run did. Answers are kept in RUN/heldout: a second call for as many only measures.
"""

from __future__ import annotations

import argparse
import json

from overproof.core import device

device.prepare()

from _finished import finished  # noqa: E402
from _results import keep  # noqa: E402
from overproof.core import artifact  # noqa: E402
from overproof.core.contract import TEACHER  # noqa: E402
from overproof.release.tally import DIFFERENCES  # noqa: E402
from overproof.student import arms, initial  # noqa: E402
from overproof.teacher import answers  # noqa: E402
from overproof.teacher.forward import mixed  # noqa: E402
from overproof.teacher.origins import Loader  # noqa: E402

METRICS = ("kl_nats_per_token", "top1_agreement")


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1500)
    run = finished(parser)
    recipe, stages = run.recipe, run.stages
    asked = recipe.sample.model_copy(update={"prompts": 8, "heldout_prompts": run.given.prompts})
    wider = recipe.model_copy(update={"sample": asked})
    teacher = run.teacher()
    more = answers.sample(
        Loader(lambda _: teacher),
        artifact.load(stages / "train"),
        artifact.load(stages / "heldout"),
        {TEACHER: teacher.resource},
        artifact.load(stages / "terms"),
        wider,
        run.folder / "heldout",
    )
    texts = answers.read(more)
    vocabulary = initial.load(stages / "initial").vocabulary
    controls = [arms.control_name(one) for one in recipe.train.controls]
    folders = {"untrained": "initial", "student": "student"} | {one: one for one in controls}
    models = {name: mixed(initial.load_model(stages / folder)) for name, folder in folders.items()}
    found = run.evaluate(teacher, texts, vocabulary, models)
    numbers = {
        "recipe": recipe.name,
        "student_sha256": artifact.load(stages / "student").sha256,
        "prompts": len(texts.heldout),
        **{name: {metric: found[name][metric] for metric in METRICS} for name in models},
        "differences": {
            name: {metric: rows[metric] for metric in METRICS}
            for name, rows in found[DIFFERENCES].items()
        },
    }
    result = keep("heldout", numbers)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
