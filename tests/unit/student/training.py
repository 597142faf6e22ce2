"""A tiny training set and student; run as a script it trains, so that it can be killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tiny_teacher as tiny
import torch

from overproof.core.config import TrainConfig
from overproof.student.examples import TrainSet, build_train_set
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


def main(folder: Path, steps: int) -> None:
    model = student()
    resumed = any((folder / "scratch").glob("step-*/progress.json"))
    wanted = config(steps=steps, checkpoint_seconds=1)
    data(folder / "examples")
    done = train(model, folder / "examples", wanted, 3, folder / "scratch", tiny.meter(steps))
    torch.save(model.state_dict(), folder / "weights.pt")
    facts = {
        "losses": done.losses,
        "tokens": done.tokens,
        "weights": done.weights,
        "resumed": resumed,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
