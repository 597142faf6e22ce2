"""One process's part of every training step where each holds a part of the weights: FSDP2.

For machines without common memory, and for any device: `torch.distributed.fsdp.fully_shard` gathers
a layer's weights when they are needed, and sums its gradients over the processes afterwards. What
is computed is what `worker.py` computes: the same share of the same batch, a loss weighted by the
whole step, sums in fp32. The order of a sum follows from the number of processes, so that equal
numbers of them end in equal bits, and others in equal values up to rounding (docs/adr/NNNN).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate

from overproof.core.device import PROCESSOR
from overproof.core.errors import StageError
from overproof.core.sections import TrainConfig
from overproof.student import hidden
from overproof.student.body import PlainBody
from overproof.student.optimizer import clip_factor, optimizers, rate, set_rate
from overproof.student.quantise import KINDS, stored
from overproof.student.step import Part, diverged, loss_of

MASTERS, STATES = "masters", "optimizer"  # parts of a checkpoint


class Objective(nn.Module):
    """The student and its loss as one module: the head is gathered for both at once.

    Attributes:
        error: of the last step, where this process's loss was not finite.
    """

    def __init__(self, student: Any, config: TrainConfig, compute: torch.dtype) -> None:
        super().__init__()
        self.student, self.config, self.compute = student, config, compute
        self.body = PlainBody(student)
        self.error: StageError | None = None

    def forward(self, part: Part, total: float, step: int) -> tuple[Tensor, Tensor]:
        """The divergence alone, and what is made small; see `loss_of`."""
        found = loss_of(self.student, self.body, part, total, self.config, self.compute)
        if not bool(torch.isfinite(found.whole.detach())):
            self.error = diverged(self.student, part, found, step)
        return found.loss, found.whole


class Sharded:
    """One process's part of every step.

    Attributes:
        masters: the fp32 weights that the optimizer updates, each a `DTensor`; where the recipe
            quantises, others than those that are computed with.
    """

    def __init__(
        self, student: Any, config: TrainConfig, device: torch.device, compute: torch.dtype
    ) -> None:
        self.config = config
        # Counts and norms are summed on the processor: not every device knows fp64.
        self.host = None if device.type == PROCESSOR.name else dist.new_group(backend="gloo")
        self.objective = _sharded(Objective(student.eval().float(), config, compute), device)
        self.computed = dict(self.objective.student.named_parameters())
        self.masters = dict(self.computed)
        if config.quantize:
            self.masters = {n: nn.Parameter(p.detach().clone()) for n, p in self.computed.items()}
        self.optimizers = optimizers(config, list(self.masters.items()))

    def sums(self, *values: float) -> list[float]:
        """Sums over all processes."""
        row = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(row, group=self.host)
        found: list[float] = row.tolist()
        return found

    def gradients(self, part: Part, total: float, step: int) -> tuple[float, float]:
        """Forward and backward over this process's rows.

        Args:
            total: sum of the weights of the whole step.

        Returns:
            the step's loss, and the square of the gradient's norm, of all processes.

        Raises:
            StageError: the loss is not finite; of the processes whose own is not it names records.
        """
        loss, whole = self.objective(part, total, step)
        whole.backward()
        for computed in self.computed.values():
            if computed.grad is None:  # what only chooses, as an indexer does, is not learned
                computed.grad = torch.zeros_like(computed)
        grads = [_local(one.grad) for one in self.computed.values()]
        square = sum(float(torch.linalg.vector_norm(grad)) ** 2 for grad in grads)
        told, square = self.sums(float(loss.detach()), square)
        if not math.isfinite(told):
            raise self.objective.error or StageError("training diverged in another process")
        return told, square

    def update(self, step: int, square: float) -> None:
        """Clip by the norm over all processes, step the optimizers, publish the new weights."""
        factor = clip_factor(square, self.config.clip)
        for name, computed in self.computed.items():
            grad, computed.grad = computed.grad, None
            if factor != 1.0:
                _local(grad).mul_(factor)
            self.masters[name].grad = grad
        set_rate(self.optimizers, rate(self.config, step))
        self._step()
        self.publish(step + 1)

    @torch.no_grad()
    def publish(self, step: int) -> None:
        """Make the masters what this step computes with, where that is not the same.

        Raises:
            StageError: one of them is no number, and has no build.
        """
        if not self.config.quantize:
            return
        kind = KINDS[self.config.quantize.format] if self.config.quantized(step) else None
        for name, master in self.masters.items():
            weights: Tensor = master
            if kind and name != hidden.WEIGHT:  # which is in no build
                # How a tensor is stored may follow from all of it.
                whole = stored(name, master.full_tensor(), kind).to(master.device)
                mesh = master.device_mesh
                weights = DTensor.from_local(whole, mesh, [Replicate()], run_check=False)
                weights = weights.redistribute(placements=master.placements)
            self.computed[name].copy_(weights)

    def sha256(self) -> str:
        """That of the fp32 weights, as `Flat.sha256` takes it; all processes have to ask."""
        found = hashlib.sha256()
        for master in self.masters.values():
            whole = master.detach().full_tensor().cpu().contiguous()
            found.update(memoryview(whole.view(torch.uint8).numpy().reshape(-1)))
        return found.hexdigest()

    def save(self, folder: Path) -> None:
        """Write a checkpoint, each process its part; it can be read by any number of them."""
        save(self._state(), checkpoint_id=folder, process_group=self.host)

    def restore(self, folder: Path) -> None:
        """Read a checkpoint; the weights are still to be published."""
        # An optimizer has no state before its first step; this one changes nothing.
        set_rate(self.optimizers, 0.0)
        for master in self.masters.values():
            master.grad = torch.zeros_like(master)
        self._step()
        load(self._state(), checkpoint_id=folder, process_group=self.host)

    def _step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        for master in self.masters.values():
            master.grad = None

    def _state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, in the memory where it is."""
        states = {}
        for name, master in self.masters.items():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(master, {}).items():
                    states[f"{name}/{key}"] = value
        return {MASTERS: {n: p.detach() for n, p in self.masters.items()}, STATES: states}


def read_masters(folder: Path, student: Any) -> None:
    """Copy the weights of a checkpoint into a student, without other processes."""
    named = dict(student.named_parameters())
    weights = {name: torch.empty(one.shape) for name, one in named.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that no other processes are there
        load({MASTERS: weights}, checkpoint_id=folder, no_dist=True)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])


def _sharded(objective: Objective, device: torch.device) -> Any:
    """The same, its parameters in parts over all processes; layer by layer, then the rest."""
    compute = objective.compute
    policy = MixedPrecisionPolicy(
        param_dtype=None if compute == torch.float32 else compute,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # rotary angles stay fp32
    )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in getattr(objective.student.base_model, "layers", ()):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy)
    for part in objective.modules():
        if isinstance(part, FSDPModule):
            # A plain sum, on every backend: weights of the loss are those of the whole step.
            part.set_force_sum_reduction_for_comms(True)
            part.set_gradient_divide_factor(1.0)
    return objective


def _local(values: Tensor | None) -> Tensor:
    """This process's part."""
    assert isinstance(values, DTensor)
    return values.to_local()
