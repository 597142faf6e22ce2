"""Training the student: one process a core, weights in shared memory, exact resume.

Each worker holds its own rows of a step, computes in bf16 on a shared copy of the weights, and
then updates its own share of the parameters in fp32 (the optimizer's state is never doubled:
ZeRO stage 1, arXiv 1910.02054). No core waits for another inside a step, which is where two
OpenMP threads lose a sixth of their time (docs/log.md).

What a step computes follows from the seed, its number and the weights, and for a student that
speaks from what it has said already, which checkpoints hold. Sums are taken in the order of the
workers. So a run that was killed and resumed ends in the same bits.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from overproof.core.console import Meter  # noqa: E402
from overproof.core.digest import sha256_bytes  # noqa: E402
from overproof.core.disk import write_atomic  # noqa: E402
from overproof.core.errors import UsageError  # noqa: E402
from overproof.core.sections import TrainConfig  # noqa: E402
from overproof.core.workers import CONTEXT, sharing, spread  # noqa: E402
from overproof.data.pack import Packed  # noqa: E402
from overproof.student import hidden, lora  # noqa: E402
from overproof.student.examples import TrainSet  # noqa: E402
from overproof.student.rollouts import Judge, Shares, shares_of  # noqa: E402
from overproof.student.targets import StateTargets  # noqa: E402
from overproof.student.worker import Shared, Worker  # noqa: E402
from overproof.teacher.forward import fast_dtype, share  # noqa: E402

PROGRESS = "progress.json"  # written last, it makes a checkpoint count
WINDOW = 16_384  # examples packed together: bounds memory, and the search for room (docs/adr/0027)


class Step(NamedTuple):
    """What is known of a step.

    Attributes:
        loss: mean, nats per position.
        tokens: that went through the student, padding left out.
        weights: digest of the fp32 weights before it, see `Flat`; None: not taken.
        said: digest of what the student said for it; None: it learned from the teacher's text.
        seconds: since the step before it was known.
    """

    loss: float
    tokens: int
    weights: str | None = None
    said: str | None = None
    seconds: float = 0.0


@dataclass
class Trained:
    """A training run, as far as it has come.

    Attributes:
        workers: processes that share the steps.
        losses: of each step. tokens: of all steps.
        weights, said: digests of some steps, see `Step`; of the weights that after the last too.
        seconds: of all steps; those that a kill lost, and that were done again, count once.
        engine: whether the workers share the memory of the weights, or hold parts of them each.
    """

    workers: int
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    weights: dict[int, str] = field(default_factory=dict)
    said: dict[int, str] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)
    engine: Literal["shared-memory", "fsdp2"] = "shared-memory"

    def add(self, done: Step) -> None:
        """One step more."""
        number = len(self.losses)
        if done.weights is not None:
            self.weights[number] = done.weights
        if done.said is not None:
            self.said[number] = done.said
        self.losses.append(done.loss)
        self.tokens += done.tokens
        self.seconds += done.seconds


@dataclass(frozen=True)
class Task:
    """What every worker is told.

    Attributes:
        examples: folder of the training set. folder: of the checkpoints.
        judge: of what the student says, where the recipe is on-policy.
    """

    examples: Path
    config: TrainConfig
    seed: int
    folder: Path
    workers: int
    judge: Judge | None = None

    def shares(self, data: TrainSet) -> Shares | None:
        """Who asks the student what."""
        if self.judge is None:
            return None
        return shares_of(data, self.config, self.workers, len(self.judge.prompts), self.seed)


# Trains a student in place: see `train`, which is the one of this machine.
Trainer = Callable[[Any, Path, TrainConfig, int, Path, Meter, Judge | None], Trained]


def train(
    student: Any,
    examples: Path,
    config: TrainConfig,
    seed: int,
    folder: Path,
    meter: Meter,
    judge: Judge | None = None,
) -> Trained:
    """Train `student` in place; parameters that require no gradient stay as they are.

    1. Share the weights, adapters and a projection of hidden states among them where the recipe has
       these; find the last whole checkpoint.
    2. Run the workers; pass on each step's loss.
    3. Copy the fp32 weights back. The projection goes; adapters stay until they are merged.

    Args:
        examples: folder of the training set, see `build_train_set`.
        folder: scratch that outlives a kill, made if need be; holds the checkpoints.
        meter: counts steps.
        judge: where the recipe is on-policy.

    Raises:
        UsageError: more sequences a step than there are, or an example longer than a sequence.
        StageError: a worker died; the last checkpoint is kept.
    """
    # 1.
    folder.mkdir(parents=True, exist_ok=True)
    data = TrainSet.map(examples)
    make_ready(student, data, config, seed)
    workers = max(1, min(device.cores(), config.sequences))
    with sharing():
        shared = Shared(student, workers, fast_dtype(student))
    if judge:
        share(judge.model)
    done = _last_checkpoint(folder, workers)
    start = len(done.losses)
    meter.skip(start)
    # 2.
    task = Task(examples, config, seed, folder, workers, judge)
    for step in _run_workers(shared, task, start):
        done.add(step)
        own = "" if step.said is None else ", own text"
        meter.advance(1, f"{step.loss:.3f} nats per token{own}")
    # 3.
    with torch.no_grad():
        for name in shared.master.places:
            student.get_parameter(name).copy_(shared.master.view(name))
    hidden.detach(student)
    done.weights[len(done.losses)] = shared.master.sha256()
    return done


def make_ready(student: Any, data: TrainSet, config: TrainConfig, seed: int) -> None:
    """Give the student what it learns with beside its weights; what cannot be packed is told here,
    not by a dead worker.

    Raises:
        UsageError: see `train`.
    """
    next(batches(data, config, seed))
    if config.lora:
        lora.attach(student, config.lora, seed)
    if config.hidden:
        assert isinstance(data.targets, StateTargets)  # the recipe demands signals `exact`
        hidden.attach(student, data.targets.states_ME.shape[1], seed)


def record_keys(
    data: TrainSet, config: TrainConfig, seed: int, workers: int, prompts: Sequence[str] = ()
) -> Iterator[list[str]]:
    """Keys of the records of each step: those in it, or those that the student is asked for it.

    Args:
        prompts: keys of what the student is asked, where the recipe is on-policy.
    """
    shares = shares_of(data, config, workers, len(prompts), seed)
    cached = batches(data, config, seed)
    for step in range(config.steps):
        number = config.own_step(step)
        if number is None or shares is None:
            yield data.records(next(cached).source_RT)
        else:
            yield [prompts[turn.prompt] for turn in shares.asked(number)]


def _run_workers(shared: Shared, task: Task, start: int) -> Iterator[Step]:
    """Start one process a core and yield each step from `start` on."""
    barrier = CONTEXT.Barrier(task.workers)
    shares = [(rank, shared, task, start, barrier) for rank in range(task.workers)]
    yield from spread(
        _work,
        shares,
        task.config.steps - start,
        name="a training worker",
        hint="lower train.sequences or train.sequence_length, or free memory, and run the "
        "same command again: the last checkpoint is kept",
    )


def batches(data: TrainSet, config: TrainConfig, seed: int) -> Iterator[Packed]:
    """Steps' batches for ever: each epoch shuffled and packed anew, window after window.

    What a window leaves over is dropped.

    Raises:
        UsageError: an epoch has fewer sequences than a step takes.
    """
    count, epoch = len(data.lengths), 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(count)
        sequences = steps = 0
        for which in np.array_split(order, max(1, math.ceil(count / WINDOW))):
            packed = data.packed(which, config.sequence_length)
            sequences += len(packed.tokens_RT)
            for step in range(len(packed.tokens_RT) // config.sequences):
                rows = slice(step * config.sequences, (step + 1) * config.sequences)
                yield packed.rows(rows, whole=True)
                steps += 1
        if not steps:
            raise UsageError(
                f"train.sequences is {config.sequences}",
                details=[f"all examples fill {sequences} sequences"],
                hint="lower train.sequences, or sample more prompts",
            )
        epoch += 1


def _work(
    rank: int,
    shared: Shared,
    task: Task,
    start: int,
    barrier: threading.Barrier,
    results: Any,
) -> None:
    """A worker's loop.

    1. Take the own part of the step. 2. Its gradients. 3. Sum the owned ones. 4. Update.
    5. Checkpoint when due.
    Between them all workers meet.
    """
    torch.set_num_threads(1)
    config, folder = task.config, task.folder
    data = TrainSet.map(task.examples)
    worker = Worker(rank, task.workers, shared, config, data, task.judge, task.shares(data))
    done = Trained(task.workers)
    if start:
        last = _checkpoint_at(folder, start, task.workers)
        done = read_progress(last)
        worker.restore(last)
    worker.publish(start)
    saved = known = time.monotonic()
    cached = batches(data, config, task.seed)
    for step in range(config.steps):
        number = config.own_step(step)
        batch = next(cached) if number is None else None
        if step < start:
            continue
        barrier.wait()
        # All have updated, and none does again before all gradients are there.
        due = rank == 0 and step % config.digest_steps == 0
        weights = shared.master.sha256() if due else None
        part = worker.take(batch, number)
        barrier.wait()
        worker.gradients(part, step)
        barrier.wait()
        worker.gather()
        if rank == 0:
            said = (
                None if batch is not None else sha256_bytes(bytes(shared.said.flatten().tolist()))
            )
            before, known = known, time.monotonic()
            found = Step(
                float(shared.loss.sum()), int(shared.tokens.sum()), weights, said, known - before
            )
            done.add(found)
            results.put(found)
            shared.save[0] = known - saved > config.checkpoint_seconds
        barrier.wait()
        worker.update(step)
        if shared.save[0]:
            saved = time.monotonic()
            at = _checkpoint_at(folder, step + 1, task.workers)
            _checkpoint(worker, at, done, barrier)


def _checkpoint(worker: Worker, folder: Path, done: Trained, barrier: threading.Barrier) -> None:
    """All shares first, then the file that makes them count, then the older ones go."""
    folder.mkdir(exist_ok=True)
    worker.save(folder)
    barrier.wait()
    if worker.rank == 0:
        write_atomic(folder / PROGRESS, json.dumps(asdict(done)).encode())
        for old in folder.parent.glob("step-*"):
            if old != folder:
                remove(old)


def remove(folder: Path) -> None:
    """Remove a checkpoint; half removed, it counts no more."""
    (folder / PROGRESS).unlink(missing_ok=True)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def read_progress(folder: Path) -> Trained:
    """How far the training had come at a whole checkpoint."""
    state = json.loads((folder / PROGRESS).read_bytes())
    for digests in ("weights", "said"):
        state[digests] = {int(step): digest for step, digest in state[digests].items()}
    return Trained(**state)


def _checkpoint_at(folder: Path, step: int, workers: int) -> Path:
    return folder / f"step-{step}-by-{workers}"


def _last_checkpoint(folder: Path, workers: int) -> Trained:
    """That of the last whole checkpoint made by as many workers; of none, no step."""
    whole = (path.parent for path in folder.glob(f"step-*-by-{workers}/{PROGRESS}"))
    found = (read_progress(path) for path in whole)
    return max(found, key=lambda done: len(done.losses), default=Trained(workers))
