"""A tiny training set and student; run as a script it trains, so that it can be killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tiny_teacher as tiny
import torch

from overproof.core.config import TrainConfig
from overproof.core.methods import OnPolicy
from overproof.student.examples import TrainSet, build_train_set
from overproof.student.rollouts import Judge
from overproof.student.train import train
from overproof.student.vocabulary import Vocabulary, trim
from overproof.teacher.kept import TopK
from overproof.teacher.signals import shard_signals

HEAD = (1, 7, 8, 9)
ROOM = 48


def vocabulary(size: int = tiny.TOKENS) -> Vocabulary:
    mass = [1.0 / (1 + number) for number in range(tiny.TOKENS)]
    return trim(tiny.tokenizer(), torch.tensor(mass).numpy(), size, tiny.CONTROL)


def data(folder: Path, count: int = 120, top_k: int = 8) -> TrainSet:
    examples = tiny.examples(count)
    signals = shard_signals(tiny.model(), HEAD, examples, ROOM, TopK(top_k, 4))
    return build_train_set(folder, HEAD, examples, vocabulary(), [signals.spread()])


def config(**changes: object) -> TrainConfig:
    base = {"steps": 12, "sequences": 3, "sequence_length": ROOM, "learning_rate": 0.01}
    return TrainConfig(**(base | changes))


def student():
    return tiny.model(layers=2, seed=1)


def judge(size: int = tiny.TOKENS, count: int = 30) -> Judge:
    return Judge(
        tiny.model(),
        tiny.tokenizer(),
        vocabulary(size),
        HEAD,
        tuple((one.key, one.prompt) for one in tiny.examples(count)),
        (0,),
        12,
        64,
    )


def main(folder: Path, steps: int, whose: str) -> None:
    model = student()
    resumed = any((folder / "scratch").glob("step-*/progress.json"))
    own = OnPolicy(warm_start=0.1, fraction=0.6, ahead=3) if whose == "own" else None
    wanted = config(steps=steps, checkpoint_seconds=1, on_policy=own)
    data(folder / "examples")
    done = train(
        model,
        folder / "examples",
        wanted,
        3,
        folder / "scratch",
        tiny.meter(steps),
        judge() if own else None,
    )
    torch.save(model.state_dict(), folder / "weights.pt")
    facts = {
        "losses": done.losses,
        "tokens": done.tokens,
        "weights": done.weights,
        "said": done.said,
        "resumed": resumed,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
