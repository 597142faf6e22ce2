"""The training engine against TRL, a plain loop, and its own limit: learned tokens a second.

    python benchmarks/engine.py RUN [--steps 40] [--timed 10] [--rounds 3]

RUN is the folder of a finished run (`out/demo`). The strict comparison gives everybody the run's
initial student with all of the teacher's tokens, for TRL demands one vocabulary; the same examples
in the same order, completions alone learned (TRL learns nothing else), forward KL at temperature
1, AdamW and its learning rates. Ours learns from the run's cached signals, the others have the
teacher live. Every arm is timed in turn, A B A B, and trained once more in full to be measured on
the held-out prompts after equal learned tokens.

arms, all tokens of the teacher:
    ours            our trainer
    gkd             TRL's experimental GKDTrainer (lmbda=0, beta=0)
    distillation    TRL's DistillationTrainer (beta=0), its own generation replaced by given text
    plain           a loop as one writes it first, see _plain.py
    body            the limit: our steps without the student's head and loss, see _body.py
    ours-prompts    ours, prompts learned too
and with the vocabulary as the run has trimmed it:
    trimmed, trimmed-prompts, trimmed-body, trimmed-prompts-body
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

from _finished import Finished, finished  # noqa: E402
from _ours import Ours, all_tokens, signal_pass  # noqa: E402
from _pace import WARM, Learned, Run, turns  # noqa: E402
from _peers import PACKAGES, TRAINERS, Peer, missing, prepare, tune  # noqa: E402
from _plain import plain  # noqa: E402
from _results import keep  # noqa: E402
from overproof.core import artifact  # noqa: E402
from overproof.core.config import with_overrides  # noqa: E402
from overproof.core.console import note  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.release.tally import DIFFERENCES, STUDENT  # noqa: E402
from overproof.student import initial  # noqa: E402
from overproof.teacher import local  # noqa: E402
from overproof.teacher.answers import Answers, read  # noqa: E402

TIMES_TRL, OF_BODY_ONLY = 5.0, 0.85  # the bars
COMPLETIONS = [
    "signals.prompts=false",
    "train.divergence={kind: forward-kl}",
    "train.optimizer=adamw",
    "train.on_policy=null",
    "train.controls=[]",
]
PROMPTS = ["signals.prompts=true", *COMPLETIONS[1:]]
MORE = 3  # steps of examples beyond the last, so that TRL's last step is whole
METRIC = "kl_nats_per_token"


@dataclass(frozen=True)
class Arm:
    """One of what is compared.

    Attributes:
        train: for so many steps.
        steps: of the whole training, which ends after as many learned tokens as ours.
        begun: the student that it starts from; None: its speed alone counts.
    """

    train: Callable[[int], Run]
    steps: int
    begun: initial.Initial | None


@dataclass(frozen=True)
class Given:
    """What all arms are made of."""

    run: Finished
    teacher: local.Teacher
    answers: Answers
    trimmed: initial.Initial
    whole: initial.Initial
    folder: Path

    def ours(self, name: str, start: initial.Initial, overrides: Sequence[str]) -> Ours:
        """Our trainer, with its training set."""
        prompts = overrides is PROMPTS
        made = Ours.of(
            self.run, self.answers, start, overrides, self.folder / name, prompts=prompts
        )
        device.release_memory()
        return made

    def evaluate(self, begun: initial.Initial, models: Mapping[str, Any]) -> dict[str, Any]:
        """The divergence of models of one vocabulary, and by how much the first leads."""
        first, *others = models
        named = {STUDENT: models[first], **{name: models[name] for name in others}}
        named["untrained"] = begun.model
        found = self.run.evaluate(self.teacher, self.answers, begun.vocabulary, named)
        values = {first: found[STUDENT], **{name: found[name] for name in (*others, "untrained")}}
        return {
            METRIC: {name: one[METRIC] for name, one in values.items()},
            f"{first}_less": {name: one[METRIC] for name, one in found[DIFFERENCES].items()},
        }


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="of the training that is measured")
    parser.add_argument("--timed", type=int, default=10, help="steps of each timed training")
    parser.add_argument("--rounds", type=int, default=3, help="timed trainings of each arm")
    run = finished(parser)
    if absent := missing():
        parser.error(absent)
    if min(run.given.steps, run.given.timed) <= WARM:
        parser.error(f"the first {WARM} steps give no speed: take more")
    with tempfile.TemporaryDirectory() as folder:
        numbers = compare(_given(run, Path(folder)))
    print(json.dumps(keep("engine", numbers, PACKAGES), indent=2))


def _given(run: Finished, folder: Path) -> Given:
    teacher, answers = run.teacher(), read(artifact.load(run.stages / "samples"))
    if answers.prefix != answers.student_prefix:
        raise SystemExit("TRL gives teacher and student one text: take a run without teacher.shots")
    if run.recipe.signals.temperature != 1.0 or not run.recipe.signals.prompts:
        raise SystemExit("take a run with signals.temperature 1 and signals.prompts true")
    trimmed = initial.load(run.stages / "initial")
    return Given(run, teacher, answers, trimmed, all_tokens(trimmed, teacher), folder)


def compare(given: Given) -> dict[str, Any]:
    """Time every arm in turn, train each once in full, and measure what came out."""
    told = {name: getattr(given.run.given, name) for name in ("steps", "timed", "rounds")}
    arms, settings = _arms(given, told["steps"])
    speeds = {name: list[float]() for name in arms}
    for number, name in turns(told["rounds"], list(arms)):
        speeds[name].append(arms[name].train(told["timed"]).speed)
        note(f"round {number + 1}, {name}: {speeds[name][-1]:.1f} tokens/s")
    # The trainings that follow take longer than all before: what is known so far is not lost.
    keep("engine-speed", {"settings": told, "trl": settings, "rounds": speeds}, PACKAGES)
    full = {name: arm.train(arm.steps) for name, arm in arms.items() if arm.begun}
    medians = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    heldout = {
        label: given.evaluate(
            begun, {name: one.model for name, one in full.items() if arms[name].begun is begun}
        )
        for label, begun in (("all_tokens", given.whole), ("trimmed", given.trimmed))
    }
    passed = signal_pass(given.run, given.teacher, given.answers, given.folder / "pass")
    return {
        "recipe": given.run.recipe.name,
        "settings": told,
        "trl": settings,
        "learned_tokens_per_second": {
            name: {
                "median": medians[name],
                "rounds": [round(value, 1) for value in values],
                **({"whole_with_start": round(full[name].whole_speed, 1)} if name in full else {}),
            }
            for name, values in speeds.items()
        },
        "answer_tokens_per_second_of_a_pass_of_the_teacher": round(passed, 1),
        "learned_tokens": {name: sum(one.tokens) for name, one in full.items()},
        "heldout": heldout,
        "bars": _bars(medians, heldout["all_tokens"]),
    }


def _arms(given: Given, steps: int) -> tuple[dict[str, Arm], dict[str, Any]]:
    """The arms, and the settings of TRL's trainers."""
    ours = given.ours("ours", given.whole, COMPLETIONS)
    small = given.ours("trimmed", given.trimmed, COMPLETIONS)
    learned = ours.learned(max(steps, given.run.given.timed) + MORE)
    peers, settings, enough = _peers(given, ours.recipe, learned, steps)

    def loop(steps: int) -> Run:
        recipe = with_overrides(ours.recipe, [f"train.steps={steps}"])
        return plain(given.whole, given.teacher, given.answers, recipe, learned)

    more = given.ours("ours-prompts", given.whole, PROMPTS)
    small_more = given.ours("trimmed-prompts", given.trimmed, PROMPTS)
    arms = {
        "ours": Arm(ours.train, steps, given.whole),
        **{name: Arm(peer.train, enough, given.whole) for name, peer in peers.items()},
        "plain": Arm(loop, steps, given.whole),
        "body": Arm(ours.body, steps, None),
        "ours-prompts": Arm(more.train, steps, given.whole),
        "trimmed": Arm(small.train, steps, given.trimmed),
        "trimmed-body": Arm(small.body, steps, None),
        "trimmed-prompts": Arm(small_more.train, steps, given.trimmed),
        "trimmed-prompts-body": Arm(small_more.body, steps, None),
    }
    return arms, settings


def _peers(
    given: Given, recipe: Recipe, learned: Learned, steps: int
) -> tuple[dict[str, Peer], dict[str, Any], int]:
    """TRL's trainers with their settings, and their steps for as many learned tokens as ours."""
    folder = given.folder / "trl"
    batch, tokens = prepare(folder, given.whole, given.teacher, given.answers, learned)
    budget = sum(learned.tokens[:steps])
    enough = next(number for number, sum_ in enumerate(accumulate(tokens), 1) if sum_ >= budget)
    peers, settings = dict[str, Peer](), dict[str, Any]()
    for name in TRAINERS:
        peers[name], tried = tune(Peer(name, folder, batch, recipe, tokens))
        settings[name] = {
            "examples_per_step": batch,
            "steps": enough,
            **vars(peers[name].setting),
            "tried": tried,
        }
    return peers, settings, enough


def _bars(medians: Mapping[str, float], heldout: Mapping[str, Any]) -> dict[str, Any]:
    """What was wanted, and what came out.

    Ours counts as equal or better where its lead in KL, paired prompt by prompt, is not shown to
    be on the other side: the interval's lower end is not above zero.
    """
    fastest = max(TRAINERS, key=lambda name: medians[name])
    lead = heldout["ours_less"][fastest]
    return {
        "times_trl": {
            "wanted": TIMES_TRL,
            "got": round(medians["ours"] / medians[fastest], 2),
            "trl": fastest,
            "kl_less_trl": lead,
            "kl_equal_or_better": lead["low"] <= 0,
        },
        "of_body_only": {
            "wanted": OF_BODY_ONLY,
            **{
                name: round(medians[name] / medians[body], 3)
                for name, body in (
                    ("ours", "body"),
                    ("trimmed", "trimmed-body"),
                    ("trimmed-prompts", "trimmed-prompts-body"),
                )
            },
        },
    }


if __name__ == "__main__":
    main()
