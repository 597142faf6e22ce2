"""The body-only limit: our own steps without the student's head and without a loss.

What no loss can be faster than: the same packed batches, worker processes, layers, sums of
gradients and optimizer. The last hidden states are added up, so that there is a backward pass.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from _pace import Learned, Pace, Run
from overproof.core import device
from overproof.core.recipe import Recipe
from overproof.core.workers import CONTEXT, sharing, spread
from overproof.student.examples import TrainSet
from overproof.student.step import Part
from overproof.student.train import Task, batches
from overproof.student.worker import Shared, Worker
from overproof.teacher.forward import model_inputs


class BodyWorker(Worker):
    """A worker whose loss is the sum of the last hidden states."""

    def gradients(self, part: Part, step: int) -> None:  # noqa: ARG002
        """See `Worker`."""
        hidden_RTD = self.body.states(model_inputs(part.batch, self.model.dtype))
        loss = hidden_RTD.sum(dtype=torch.float32) / hidden_RTD.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        self.shared.loss[self.rank] = loss.detach().double()


def body_only(student: Any, examples: Path, recipe: Recipe, learned: Learned) -> Run:
    """Take a training's steps without head and loss; `student` stays as it is.

    Args:
        examples: folder of the training set.
    """
    config = recipe.train
    workers = max(1, min(device.cores(), config.sequences))
    pace = Pace("body only", config.steps)
    dtype = torch.bfloat16 if device.processor().bf16 else torch.float32
    with sharing():
        shared = Shared(student, workers, dtype)
    task = Task(examples, config, recipe.seed, examples.parent, workers)
    barrier = CONTEXT.Barrier(workers)
    for _ in spread(
        _work,
        [(rank, shared, task, barrier) for rank in range(workers)],
        config.steps,
        name="a worker of the body-only limit",
        hint="free memory, and run the benchmark again",
    ):
        pace.advance(1)
    return pace.run(learned.tokens[: config.steps])


def _work(rank: int, shared: Shared, task: Task, barrier: threading.Barrier, results: Any) -> None:
    """The loop of `train`, without checkpoints and digests."""
    torch.set_num_threads(1)
    data = TrainSet.map(task.examples)
    worker = BodyWorker(rank, task.workers, shared, task.config, data)
    cached = batches(data, task.config, task.seed)
    for step in range(task.config.steps):
        barrier.wait()
        part = worker.take(next(cached), None)
        barrier.wait()
        worker.gradients(part, step)
        barrier.wait()
        worker.gather()
        if rank == 0:
            results.put(float(shared.loss.sum()))
        barrier.wait()
        worker.update(step)
