"""A tiny training set and student; run as a script it trains, so that it can be killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tiny_teacher as tiny
import torch

from overproof.core.methods import Hidden, Lora, OnPolicy, Quantize
from overproof.core.sections import TrainConfig
from overproof.data.pack import Packed
from overproof.student.examples import TrainSet, build_train_set
from overproof.student.rollouts import Judge
from overproof.student.train import batches, train
from overproof.student.vocabulary import Vocabulary, trim
from overproof.student.worker import Shared, Worker
from overproof.teacher.cache import SignalCache, describe, shard_file, write_shard
from overproof.teacher.kept import States, TopK
from overproof.teacher.signals import shard_signals

HEAD = (1, 7, 8, 9)
ORIGIN = {"teacher": "the tiny one"}
ROOM = 48


def vocabulary(size: int = tiny.TOKENS) -> Vocabulary:
    mass = [1.0 / (1 + number) for number in range(tiny.TOKENS)]
    return trim(tiny.tokenizer(), torch.tensor(mass).numpy(), size, tiny.CONTROL)


def data(folder: Path, count: int = 120, top_k: int = 8) -> TrainSet:
    examples = tiny.examples(count)
    signals = shard_signals(tiny.model(), HEAD, examples, ROOM, TopK(top_k, 4))
    return build_train_set(folder, HEAD, examples, vocabulary(), [signals.spread()])


def states(folder: Path, count: int = 60) -> TrainSet:
    """The same with the teacher's hidden states as targets."""
    examples, model, kept = tiny.examples(count), tiny.model(), States()
    cached = folder.with_name("states")
    cached.mkdir(exist_ok=True)  # also where a killed run had begun
    write_shard(shard_file(cached, 0), kept, shard_signals(model, HEAD, examples, ROOM, kept))
    describe(cached, kept, ORIGIN, model.lm_head.weight)
    signals = SignalCache(cached, ORIGIN)
    return build_train_set(folder, HEAD, examples, vocabulary(), signals)


def config(**changes: object) -> TrainConfig:
    base = {"steps": 12, "sequences": 3, "sequence_length": ROOM, "learning_rate": 0.01}
    return TrainConfig(**(base | changes))


def student():
    return tiny.model(layers=2, seed=1)


def alone(model, examples: Path, config: TrainConfig) -> Worker:
    """Train in this process, as one worker does, in fp32; the model gets the weights."""
    worker = Worker(0, 1, Shared(model, 1, torch.float32), config, TrainSet.map(examples))
    worker.publish(0)
    cached = batches(worker.data, config, 3)
    for step in range(config.steps):
        one_step(worker, next(cached), step)
    for name, master in worker.masters.items():
        model.get_parameter(name).data.copy_(master)
    return worker


def one_step(worker: Worker, batch: Packed, step: int) -> None:
    worker.gradients(worker.take(batch, None), step)
    worker.gather()
    worker.update(step)


def judge(size: int = tiny.TOKENS, count: int = 30) -> Judge:
    return Judge(
        tiny.model(),
        tiny.tokenizer(),
        vocabulary(size),
        HEAD,
        HEAD,
        tuple((one.key, one.prompt) for one in tiny.examples(count)),
        (0,),
        12,
        64,
    )


def main(folder: Path, steps: int, whose: str) -> None:
    model = student()
    resumed = any((folder / "scratch").glob("step-*/progress.json"))
    own = whose == "own"
    more = {
        "the-teachers": {},
        "own": {
            "on_policy": OnPolicy(warm_start=0.1, fraction=0.6, ahead=3),
            "hidden": Hidden(),
            "quantize": Quantize(start=0.3),
        },
        "adapters": {"lora": Lora(rank=4)},
    }
    wanted = config(steps=steps, checkpoint_seconds=1, **more[whose])
    (states if own else data)(folder / "examples")
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
