"""Training the student: one process a core, weights in shared memory, exact resume.

Each worker holds its own rows of a step, computes in bf16 on a shared copy of the weights, and
then updates its own share of the parameters in fp32 (the optimizer's state is never doubled:
ZeRO stage 1, arXiv 1910.02054). No core waits for another inside a step, which is where two
OpenMP threads lose a sixth of their time (docs/log.md).

What a step computes follows from the seed and its number alone, and sums are taken in the order
of the workers, so a run that was killed and resumed ends in the same bits.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from overproof.core.config import TrainConfig  # noqa: E402
from overproof.core.console import Meter  # noqa: E402
from overproof.core.disk import write_atomic  # noqa: E402
from overproof.core.errors import UsageError  # noqa: E402
from overproof.core.workers import CONTEXT, sharing, spread  # noqa: E402
from overproof.data.pack import Packed, pack  # noqa: E402
from overproof.student.examples import TrainSet  # noqa: E402
from overproof.student.worker import Shared, Worker  # noqa: E402

BARRIER_SECONDS = 600.0  # a step takes seconds; a worker that is this late is dead


@dataclass(frozen=True)
class Trained:
    """The end of a training run.

    Attributes:
        losses: mean loss of each step, nats per position.
        tokens: tokens that went through the student, padding left out.
        workers: processes that shared the steps.
        weights: digests of the fp32 weights before some steps and after the last, see `Flat`.
    """

    losses: list[float]
    tokens: int
    workers: int
    weights: dict[int, str]


def train(
    student: Any,
    examples: Path,
    config: TrainConfig,
    seed: int,
    folder: Path,
    meter: Meter,
) -> Trained:
    """Train `student` in place.

    1. Share the weights; find the last whole checkpoint.
    2. Run the workers; pass on each step's loss.
    3. Copy the fp32 weights back.

    Args:
        examples: folder of the training set, see `build_train_set`.
        folder: scratch that outlives a kill, made if need be; holds the checkpoints.
        meter: counts steps.

    Raises:
        UsageError: more sequences a step than there are, or an example longer than a sequence.
        StageError: a worker died; the last checkpoint is kept.
    """
    # 1.
    folder.mkdir(parents=True, exist_ok=True)
    # What cannot be packed is told here, not by a dead worker.
    next(batches(TrainSet.map(examples), config, seed))
    workers = max(1, min(device.cores(), config.sequences))
    dtype = torch.bfloat16 if device.processor().bf16 else torch.float32
    with sharing():
        shared = Shared(student, workers, dtype)
    done = _last_checkpoint(folder, workers)
    start = len(done.losses)
    meter.skip(start)
    # 2.
    for loss, count, weights in _run_workers(
        shared, examples, config, seed, folder, workers, start
    ):
        done.add(loss, count, weights)
        meter.advance(1, f"{loss:.3f} nats per token")
    # 3.
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(shared.master.view(name))
    done.weights[len(done.losses)] = shared.master.sha256()
    return Trained(done.losses, done.tokens, workers, done.weights)


def record_keys(data: TrainSet, config: TrainConfig, seed: int) -> Iterator[list[str]]:
    """Keys of the records of each step, for ever."""
    for batch in batches(data, config, seed):
        yield data.records(batch.source_RT)


def _run_workers(
    shared: Shared,
    examples: Path,
    config: TrainConfig,
    seed: int,
    folder: Path,
    workers: int,
    start: int,
) -> Iterator[tuple[float, int, str | None]]:
    """Start one process a core and yield each step's loss, tokens and, where due, weights."""
    barrier = CONTEXT.Barrier(workers)
    shares = [
        (rank, workers, shared, examples, config, seed, folder, start, barrier)
        for rank in range(workers)
    ]
    yield from spread(
        _work,
        shares,
        config.steps - start,
        name="a training worker",
        hint="lower train.sequences or train.sequence_length, or free memory, and run the "
        "same command again: the last checkpoint is kept",
    )


def batches(data: TrainSet, config: TrainConfig, seed: int) -> Iterator[Packed]:
    """Steps' batches for ever: each epoch shuffled and packed anew, what is left over dropped.

    Raises:
        UsageError: an epoch has fewer sequences than a step takes.
    """
    examples, epoch = data.examples, 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(examples)).tolist()
        packed = pack(data.prefix.tolist(), examples, config.sequence_length, order)
        whole = len(packed.tokens_RT) // config.sequences
        if not whole:
            raise UsageError(
                f"train.sequences is {config.sequences}",
                details=[f"all examples fill {len(packed.tokens_RT)} sequences"],
                hint="lower train.sequences, or sample more prompts",
            )
        for step in range(whole):
            rows = slice(step * config.sequences, (step + 1) * config.sequences)
            yield packed.rows(rows, whole=True)
        epoch += 1


def _work(
    rank: int,
    workers: int,
    shared: Shared,
    examples: Path,
    config: TrainConfig,
    seed: int,
    folder: Path,
    start: int,
    barrier: threading.Barrier,
    results: Any,
) -> None:
    """A worker's loop.

    1. Gradients of the own rows. 2. Sum the owned ones. 3. Update. 4. Checkpoint when due.
    Between them all workers meet.
    """
    torch.set_num_threads(1)
    data = TrainSet.map(examples)
    worker = Worker(rank, workers, shared, config, data)
    done = Progress()
    if start:
        done = _read_progress(folder / f"step-{start}")
        worker.restore(folder / f"step-{start}")
    saved = time.monotonic()
    for step, batch in enumerate(batches(data, config, seed)):
        if step >= config.steps:
            break
        if step < start:
            continue
        barrier.wait(BARRIER_SECONDS)
        # All have updated and none does before the next barrier but one: the weights stand still.
        due = rank == 0 and step % config.digest_steps == 0
        weights = shared.master.sha256() if due else None
        worker.gradients(batch, step)
        barrier.wait(BARRIER_SECONDS)
        worker.gather()
        if rank == 0:
            found = float(shared.loss.sum()), int((batch.segments_RT >= 0).sum()), weights
            done.add(*found)
            results.put(found)
            shared.save[0] = time.monotonic() - saved > config.checkpoint_seconds
        barrier.wait(BARRIER_SECONDS)
        worker.update(step)
        if shared.save[0]:
            saved = time.monotonic()
            _checkpoint(worker, folder / f"step-{step + 1}", done, barrier)


@dataclass
class Progress:
    """What is known of the steps that are done; see `Trained`."""

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    weights: dict[int, str] = field(default_factory=dict)

    def add(self, loss: float, tokens: int, weights: str | None) -> None:
        """One step more.

        Args:
            weights: their digest before it, if it was taken.
        """
        if weights is not None:
            self.weights[len(self.losses)] = weights
        self.losses.append(loss)
        self.tokens += tokens


def _checkpoint(worker: Worker, folder: Path, done: Progress, barrier: threading.Barrier) -> None:
    """All shares first, then the file that makes them count, then the older ones go."""
    folder.mkdir(exist_ok=True)
    worker.save(folder)
    barrier.wait(BARRIER_SECONDS)
    if worker.rank == 0:
        write_atomic(folder / "progress.json", json.dumps(asdict(done)).encode())
        for old in folder.parent.glob("step-*"):
            if old != folder:
                _remove(old)


def _remove(folder: Path) -> None:
    (folder / "progress.json").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def _read_progress(folder: Path) -> Progress:
    state = json.loads((folder / "progress.json").read_bytes())
    weights = {int(step): digest for step, digest in state["weights"].items()}
    return Progress(state["losses"], state["tokens"], weights)


def _last_checkpoint(folder: Path, workers: int) -> Progress:
    """That of the last whole checkpoint made by as many workers; of none, no step."""
    whole = [path.parent for path in folder.glob("step-*/progress.json")]
    whole = [path for path in whole if len(list(path.glob("worker-*.pt"))) == workers]
    if not whole:
        return Progress()
    last = max(whole, key=lambda path: int(path.name.removeprefix("step-")))
    return _read_progress(last)
