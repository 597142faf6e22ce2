"""One process's part of every training step, and the memory that all of them share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overproof.core.sections import TrainConfig
from overproof.data.pack import Packed
from overproof.student import hidden
from overproof.student.body import make_body
from overproof.student.divergences import divergence
from overproof.student.examples import TrainSet
from overproof.student.flat import Flat
from overproof.student.optimizer import clip_factor, optimizers, rate, set_rate
from overproof.student.quantise import KINDS, stored
from overproof.student.rollouts import Judge, Rollouts, Shares
from overproof.student.step import Part, diverged, loss_of, part_of


class Shared:
    """Memory that all workers see.

    Attributes:
        compute: the model that the forward passes use, in bf16 where the processor likes it.
        weights: its parameters that learn; frozen: those that do not.
        master: what learns in fp32, each updated by its owner; where the recipe quantises, it is
            what `weights` is made of and what the gradients go to.
        grads: each worker's gradients.
        loss: each worker's part of the step's loss; `norm`: of the squared gradient norm;
            `weight`: of its sum of weights; `tokens`: of its tokens.
        said: SHA-256 of what each worker's student said for an on-policy step.
        save: 1 when the step that begins ends with a checkpoint.
    """

    def __init__(self, student: Any, workers: int, dtype: torch.dtype) -> None:
        # Buffers keep their type: see `halved`. No dropout, so that resume is exact.
        self.compute = copy.deepcopy(student).eval()
        self.master = Flat(student, torch.float32)
        for name in self.master.places:
            self.master.view(name).copy_(student.get_parameter(name).detach())
        self.weights = Flat(student, dtype)
        self.frozen = Flat(student, dtype, learned=False)
        for part in (self.weights, self.frozen):
            part.adopt(self.compute)
        for buffer in self.compute.buffers():
            buffer.share_memory_()
        self.grads = [Flat(student, dtype) for _ in range(workers)]
        self.loss = torch.zeros(workers, dtype=torch.float64).share_memory_()
        self.norm = torch.zeros(workers, dtype=torch.float64).share_memory_()
        self.weight = torch.zeros(workers, dtype=torch.float64).share_memory_()
        self.tokens = torch.zeros(workers, dtype=torch.int64).share_memory_()
        self.said = torch.zeros(workers, 32, dtype=torch.uint8).share_memory_()
        self.save = torch.zeros(1, dtype=torch.int64).share_memory_()


class Worker:
    """One process's part of every step."""

    def __init__(
        self,
        rank: int,
        workers: int,
        shared: Shared,
        config: TrainConfig,
        data: TrainSet,
        judge: Judge | None = None,
        shares: Shares | None = None,
    ) -> None:
        self.rank, self.workers, self.shared = rank, workers, shared
        self.config, self.data = config, data
        self.divergence = divergence(config.divergence)
        self.model = shared.compute
        grads = shared.grads[rank]
        for name, parameter in self.model.named_parameters():
            # The same memory again: another process sees its parameters as copies of views.
            if not parameter.requires_grad:
                parameter.data = shared.frozen.view(name)
                continue
            parameter.data = shared.weights.view(name)
            parameter.grad = grads.view(name)
        self.body = make_body(self.model, shared.weights, grads)
        self.added = [grads.view(n) for n in grads.places if n not in self.body.written]
        sizes = {name: shared.master.view(name).numel() for name in shared.master.places}
        self.owned = share_out(sizes, workers)[rank]
        self.masters = {name: shared.master.view(name) for name in self.owned}
        for master in self.masters.values():
            master.grad = torch.zeros_like(master)
        self.optimizers = optimizers(config, list(self.masters.items()))
        self.rollouts = (
            Rollouts(rank, shares, self.model, judge, config) if judge and shares else None
        )

    def take(self, batch: Packed | None, number: int | None) -> Part:
        """This worker's part of a step; its weight and tokens are told to all.

        Args:
            batch: the step's sequences of the teacher's text; None: the student speaks.
            number: of the on-policy step, if it is one.
        """
        if batch is not None:
            part = part_of(batch, self.data, self.divergence, self.rank, self.workers)
        else:
            assert self.rollouts and number is not None and self.config.on_policy
            rows, data, said = self.rollouts.next(number)
            part = Part(rows, data, divergence(self.config.on_policy.divergence), said)
            self.shared.said[self.rank] = torch.tensor(list(bytes.fromhex(said)))
        self.shared.weight[self.rank] = part.weight
        self.shared.tokens[self.rank] = part.tokens
        return part

    def gradients(self, part: Part, step: int) -> None:
        """Forward and backward over this worker's rows; the loss is weighted by the whole step.

        What is told of it is the divergence alone, so that losses can be compared.

        Raises:
            StageError: the loss is not finite; the message names the records.
        """
        if not len(part.batch.tokens_RT):  # the student said nothing that can be judged
            self.shared.grads[self.rank].vector.zero_()
            self.shared.loss[self.rank] = 0.0
            return
        total = max(float(self.shared.weight.sum()), 1.0)
        found = loss_of(self.model, self.body, part, total, self.config, self.model.dtype)
        if not bool(torch.isfinite(found.whole.detach())):
            raise diverged(self.model, part, found, step)
        found.whole.backward()
        self.shared.loss[self.rank] = found.loss.detach().double()

    def gather(self) -> None:
        """Sum the owned parameters' gradients over the workers, in their order."""
        square = 0.0
        for name, master in self.masters.items():
            total = _grad(master)
            total.copy_(self.shared.grads[0].view(name))
            for other in self.shared.grads[1:]:
                total.add_(other.view(name))
            square += float(torch.linalg.vector_norm(total)) ** 2
        self.shared.norm[self.rank] = square

    def update(self, step: int) -> None:
        """Clip by the norm over all workers, step the optimizers, publish the new weights."""
        factor = clip_factor(float(self.shared.norm.sum()), self.config.clip)
        if factor != 1.0:
            for master in self.masters.values():
                _grad(master).mul_(factor)
        set_rate(self.optimizers, rate(self.config, step))
        for optimizer in self.optimizers:
            optimizer.step()
        self.publish(step + 1)
        for grad in self.added:
            grad.zero_()

    def publish(self, step: int) -> None:
        """Make the own parameters what this step computes with.

        Raises:
            StageError: one of them is no number, and has no build.
        """
        quantize = self.config.quantize if self.config.quantized(step) else None
        for name, master in self.masters.items():
            weights: Tensor = master
            if quantize and name != hidden.WEIGHT:  # which is in no build
                weights = stored(name, master, KINDS[quantize.format])
            self.shared.weights.view(name).copy_(weights)

    def save(self, folder: Path) -> None:
        """Write this worker's share of a checkpoint."""
        state = {
            "masters": {name: master.clone() for name, master in self.masters.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "pending": self.rollouts.pending if self.rollouts else [],
        }
        torch.save(state, folder / f"worker-{self.rank}.pt")

    def restore(self, folder: Path) -> None:
        """Read this worker's share of a checkpoint; its weights are still to be published."""
        state = torch.load(folder / f"worker-{self.rank}.pt", weights_only=True)
        for name, value in state["masters"].items():
            self.masters[name].copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.rollouts:
            self.rollouts.pending = state["pending"]


def _grad(master: Tensor) -> Tensor:
    grad = master.grad
    assert grad is not None  # made with the worker, and never taken away
    return grad


def share_out(sizes: dict[str, int], workers: int) -> list[list[str]]:
    """Whole parameters to workers, the largest first, each to the one with the least."""
    shares: list[list[str]] = [[] for _ in range(workers)]
    load = [0] * workers
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = load.index(min(load))
        shares[least].append(name)
        load[least] += sizes[name]
    return shares
