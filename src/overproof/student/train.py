"""Training the student: one process a core, weights in shared memory, exact resume.

Each worker holds its own rows of a step, computes in bf16 on a shared copy of the weights, and
then updates its own share of the parameters in fp32 (the optimizer's state is never doubled:
ZeRO stage 1, arXiv 1910.02054). No core waits for another inside a step, which is where two
OpenMP threads lose a sixth of their time (docs/log.md).

What a step computes follows from the seed and its number alone, and sums are taken in the order
of the workers, so a run that was killed and resumed ends in the same bits.
"""

from __future__ import annotations

import copy
import json
import multiprocessing as mp
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.artifact import write_atomic  # noqa: E402
from overproof.core.config import TrainConfig  # noqa: E402
from overproof.core.console import Meter  # noqa: E402
from overproof.core.errors import StageError, UsageError  # noqa: E402
from overproof.core.workers import start as start_workers  # noqa: E402
from overproof.data.pack import Packed, pack  # noqa: E402
from overproof.student.examples import TrainSet  # noqa: E402
from overproof.student.losses import chunked_bucket_kl  # noqa: E402
from overproof.student.optimizer import clip_factor, optimizers, rate, set_rate  # noqa: E402
from overproof.teacher.signals import model_inputs  # noqa: E402

BARRIER_SECONDS = 600.0  # a step takes seconds; a worker that is this late is dead
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Trained:
    """The end of a training run.

    Attributes:
        losses: mean loss of each step, nats per position.
        tokens: tokens that went through the student, padding left out.
        workers: processes that shared the steps.
    """

    losses: list[float]
    tokens: int
    workers: int


class Shared:
    """Memory that all workers see.

    Attributes:
        compute: the model that the forward passes use, in bf16 where the processor likes it.
        master: fp32 weights by parameter name, updated by their owner.
        grads: for each worker its gradients by parameter name.
        loss: each worker's part of the step's loss; `norm`: of the squared gradient norm.
        save: 1 when the step that begins ends with a checkpoint.
    """

    def __init__(self, student: Any, workers: int, dtype: torch.dtype) -> None:
        self.compute = copy.deepcopy(student).to(dtype)
        self.compute.share_memory()
        named = dict(self.compute.named_parameters())
        self.master = {
            name: parameter.detach().float().clone().share_memory_()
            for name, parameter in student.named_parameters()
        }
        self.grads = [
            {name: torch.zeros_like(p).share_memory_() for name, p in named.items()}
            for _ in range(workers)
        ]
        self.loss = torch.zeros(workers, dtype=torch.float64).share_memory_()
        self.norm = torch.zeros(workers, dtype=torch.float64).share_memory_()
        self.save = torch.zeros(1, dtype=torch.int64).share_memory_()


def train(
    student: Any,
    data: TrainSet,
    config: TrainConfig,
    seed: int,
    folder: Path,
    meter: Meter,
) -> Trained:
    """Train `student` in place.

    1. Map the examples; share the weights; find the last whole checkpoint.
    2. Run the workers; pass on each step's loss.
    3. Copy the fp32 weights back.

    Args:
        folder: scratch that outlives a kill; holds the examples and the checkpoints.
        meter: counts steps.

    Raises:
        UsageError: more sequences a step than there are, or an example longer than a sequence.
        StageError: a worker died; the last checkpoint is kept.
    """
    # 1.
    next(batches(data, config, seed))  # what cannot be packed is told here, not by a dead worker
    data.save(folder / "examples")
    workers = max(1, min(device.cores(), config.sequences))
    dtype = torch.bfloat16 if device.processor().bf16 else torch.float32
    shared = Shared(student, workers, dtype)
    start, losses, tokens = _last_checkpoint(folder, workers)
    meter.skip(start)
    # 2.
    for loss, count in _run_workers(shared, config, seed, folder, workers, start):
        losses.append(loss)
        tokens += count
        meter.advance(1, f"{loss:.3f} nats per token")
    # 3.
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.copy_(shared.master[name])
    return Trained(losses, tokens, workers)


def _run_workers(
    shared: Shared, config: TrainConfig, seed: int, folder: Path, workers: int, start: int
) -> Iterator[tuple[float, int]]:
    """Start one process a core and yield each step's loss and tokens."""
    context = mp.get_context("spawn")
    results: Any = context.Queue()
    barrier = context.Barrier(workers)
    processes = [
        context.Process(
            target=_work,
            args=(rank, workers, shared, config, seed, folder, start, barrier, results),
            daemon=True,
        )
        for rank in range(workers)
    ]
    start_workers(processes)
    try:
        for _ in range(start, config.steps):
            while True:
                try:
                    yield results.get(timeout=POLL_SECONDS)
                    break
                except queue.Empty:
                    _require_alive(processes)
        for process in processes:
            process.join()
        _require_alive(processes)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _require_alive(processes: list[Any]) -> None:
    dead = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
    if dead:
        raise StageError(
            "a training worker ended early",
            details=[f"exit code {dead[0]}; -9 usually means that memory ran out"],
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
            yield packed.rows(slice(step * config.sequences, (step + 1) * config.sequences))
        epoch += 1


class Worker:
    """One process's part of every step."""

    def __init__(
        self, rank: int, workers: int, shared: Shared, config: TrainConfig, data: TrainSet
    ) -> None:
        self.rank, self.workers, self.shared = rank, workers, shared
        self.config, self.data = config, data
        self.model = shared.compute.train()
        self.weights = dict(self.model.named_parameters())
        for name, parameter in self.weights.items():
            parameter.requires_grad_(True)
            parameter.grad = shared.grads[rank][name]
        self.owned = _share_out(shared.master, workers)[rank]
        masters = [(name, shared.master[name].requires_grad_(False)) for name in self.owned]
        for _, master in masters:
            master.grad = torch.zeros_like(master)
        self.optimizers = optimizers(config, masters)

    def gradients(self, batch: Packed) -> None:
        """Forward and backward over this worker's rows; the loss is weighted by the whole step."""
        total = float(self.data.weight_N[batch.source_RT[batch.predicts_RT]].sum())
        mine = batch.rows(slice(self.rank, None, self.workers))
        source = mine.source_RT[mine.predicts_RT]
        weight_N = torch.from_numpy(np.ascontiguousarray(self.data.weight_N[source]))
        used = weight_N > 0
        picked = torch.from_numpy(mine.predicts_RT)
        hidden_RTD = self.model.model(**model_inputs(mine, self.model.dtype)).last_hidden_state
        where = source[used.numpy()]
        loss = chunked_bucket_kl(
            hidden_RTD[picked][used],
            self.model.lm_head.weight,
            torch.from_numpy(self.data.ids_NK[where]).long(),
            torch.from_numpy(self.data.probs_NK[where]),
            weight_N[used] / total,
            compute=self.model.dtype,
        )
        loss.backward()
        self.shared.loss[self.rank] = loss.detach().double()

    def gather(self) -> None:
        """Sum the owned parameters' gradients over the workers, in their order."""
        square = 0.0
        for name in self.owned:
            total = self.shared.master[name].grad
            total.copy_(self.shared.grads[0][name])
            for other in self.shared.grads[1:]:
                total.add_(other[name])
            square += float(total.double().square().sum())
        self.shared.norm[self.rank] = square

    def update(self, step: int) -> None:
        """Clip by the norm over all workers, step the optimizers, publish the new weights."""
        factor = clip_factor(float(self.shared.norm.sum()), self.config.clip)
        for name in self.owned:
            self.shared.master[name].grad.mul_(factor)
        set_rate(self.optimizers, rate(self.config, step))
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for name in self.owned:
                self.weights[name].copy_(self.shared.master[name])
        for grad in self.shared.grads[self.rank].values():
            grad.zero_()

    def save(self, folder: Path) -> None:
        """Write this worker's share of a checkpoint."""
        state = {
            "masters": {name: self.shared.master[name].clone() for name in self.owned},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, folder / f"worker-{self.rank}.pt")

    def restore(self, folder: Path) -> None:
        """Read this worker's share of a checkpoint, and publish its weights."""
        state = torch.load(folder / f"worker-{self.rank}.pt", weights_only=True)
        with torch.no_grad():
            for name, value in state["masters"].items():
                self.shared.master[name].copy_(value)
                self.weights[name].copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _share_out(parameters: dict[str, Tensor], workers: int) -> list[list[str]]:
    """Whole parameters to workers, the largest first, each to the one with the least."""
    shares: list[list[str]] = [[] for _ in range(workers)]
    load = [0] * workers
    for name in sorted(parameters, key=lambda name: (-parameters[name].numel(), name)):
        least = load.index(min(load))
        shares[least].append(name)
        load[least] += parameters[name].numel()
    return shares


def _work(
    rank: int,
    workers: int,
    shared: Shared,
    config: TrainConfig,
    seed: int,
    folder: Path,
    start: int,
    barrier: threading.Barrier,
    results: Any,
) -> None:
    """A worker's loop.

    1. Gradients of the own rows. 2. Sum the owned ones. 3. Update. 4. Checkpoint when due.
    Between them all workers meet; a parent that is gone ends the run.
    """
    torch.set_num_threads(1)
    parent = os.getppid()
    data = TrainSet.map(folder / "examples")
    worker = Worker(rank, workers, shared, config, data)
    losses, tokens = list[float](), 0
    if start:
        losses, tokens = _read_progress(folder / f"step-{start}")
        worker.restore(folder / f"step-{start}")
    saved = time.monotonic()
    for step, batch in enumerate(batches(data, config, seed)):
        if step >= config.steps:
            break
        if step < start:
            continue
        barrier.wait(BARRIER_SECONDS)
        if os.getppid() != parent:
            return
        worker.gradients(batch)
        barrier.wait(BARRIER_SECONDS)
        worker.gather()
        if rank == 0:
            losses.append(float(shared.loss.sum()))
            count = int((batch.segments_RT >= 0).sum())
            tokens += count
            results.put((losses[-1], count))
            shared.save[0] = time.monotonic() - saved > config.checkpoint_seconds
        barrier.wait(BARRIER_SECONDS)
        worker.update(step)
        if shared.save[0]:
            saved = time.monotonic()
            _checkpoint(worker, folder / f"step-{step + 1}", losses, tokens, barrier)


def _checkpoint(
    worker: Worker, folder: Path, losses: list[float], tokens: int, barrier: threading.Barrier
) -> None:
    """All shares first, then the file that makes them count, then the older ones go."""
    folder.mkdir(exist_ok=True)
    worker.save(folder)
    barrier.wait(BARRIER_SECONDS)
    if worker.rank == 0:
        progress = {"workers": worker.workers, "losses": losses, "tokens": tokens}
        write_atomic(folder / "progress.json", json.dumps(progress).encode())
        for old in folder.parent.glob("step-*"):
            if old != folder:
                _remove(old)


def _remove(folder: Path) -> None:
    (folder / "progress.json").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def _read_progress(folder: Path) -> tuple[list[float], int]:
    state = json.loads((folder / "progress.json").read_bytes())
    return list(state["losses"]), int(state["tokens"])


def _last_checkpoint(folder: Path, workers: int) -> tuple[int, list[float], int]:
    """Step, losses and tokens of the last whole checkpoint made by as many workers."""
    whole = [path.parent for path in folder.glob("step-*/progress.json")]
    whole = [path for path in whole if len(list(path.glob("worker-*.pt"))) == workers]
    if not whole:
        return 0, [], 0
    last = max(whole, key=lambda path: int(path.name.removeprefix("step-")))
    losses, tokens = _read_progress(last)
    return len(losses), losses, tokens
