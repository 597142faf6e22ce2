"""Training the student on a Ray cluster: Ray Train starts the processes, FSDP2 joins them.

Each worker computes its part of every step on its own device (`sharded.py`). A checkpoint holds
every worker's part, in the run's folder, which all machines see. When a worker dies Ray Train
starts all of them anew, and they go on from the last whole checkpoint; when the run itself is
killed, the next one does.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402

from overproof.core.console import Meter  # noqa: E402
from overproof.core.disk import write_atomic  # noqa: E402
from overproof.core.errors import OverproofError, StageError, UsageError  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.core.sections import TrainConfig  # noqa: E402
from overproof.student import hidden  # noqa: E402
from overproof.student.divergences import divergence  # noqa: E402
from overproof.student.examples import TrainSet  # noqa: E402
from overproof.student.rollouts import Judge  # noqa: E402
from overproof.student.sharded import Sharded, read_masters  # noqa: E402
from overproof.student.step import part_of  # noqa: E402
from overproof.student.train import (  # noqa: E402
    PROGRESS,
    Step,
    Trained,
    Trainer,
    batches,
    make_ready,
    read_progress,
    remove,
)
from overproof.teacher.cluster import Cluster  # noqa: E402
from overproof.teacher.forward import fast_dtype, packs  # noqa: E402
from overproof.teacher.frozen import Frozen  # noqa: E402

FAILURES = 8  # of workers, in one run; more are no accident
WATCH_SECONDS = 1.0
FAILED, LOSSES = "failed.json", "losses.jsonl"


@dataclass(frozen=True)
class Task:
    """What every worker is told.

    Attributes:
        examples: folder of the training set. folder: of the checkpoints.
        device: torch's name of the kind of device. compute: type of the products.
    """

    student: Frozen
    examples: Path
    config: TrainConfig
    seed: int
    folder: Path
    device: str
    compute: torch.dtype


def demand(recipe: Recipe) -> None:
    """Refuse what cannot be trained on a cluster.

    Raises:
        UsageError: the student would learn from its own text, or by adapters.
    """
    if recipe.train.lora:
        raise UsageError(
            "--ray trains all weights, not adapters",
            details=["got train.lora"],
            hint="leave it out of the recipe, or --ray out of the command",
        )
    if recipe.train.on_policy:
        raise UsageError(
            "--ray trains on the teacher's text, not on the student's own",
            details=["got train.on_policy"],
            hint="leave it out of the recipe, or --ray out of the command",
        )


def trainer(cluster: Cluster) -> Trainer:
    """The cluster as one that trains, see `train.train`."""

    def train(
        student: Any,
        examples: Path,
        config: TrainConfig,
        seed: int,
        folder: Path,
        meter: Meter,
        _judge: Judge | None = None,
    ) -> Trained:
        make_ready(student, TrainSet.map(examples), config, seed)
        place = (folder / "sharded").absolute()
        place.mkdir(parents=True, exist_ok=True)
        (place / FAILED).unlink(missing_ok=True)
        last = last_checkpoint(place)
        start = len(read_progress(last).losses) if last else 0
        meter.skip(start)
        if start < config.steps:
            compute = _compute(student, cluster)
            told = Task(
                Frozen.of(student), examples.absolute(), config, seed, place,
                cluster.kind.name, compute,
            )  # fmt: skip
            _fit(told, min(cluster.places, config.sequences), cluster, Losses(place, start, meter))
        return _finished(place, student, config)

    return train


def _compute(student: Any, cluster: Cluster) -> torch.dtype:
    """As `fast_dtype`; every accelerator multiplies bf16 faster."""
    if cluster.kind != device.PROCESSOR and packs(student):
        return torch.bfloat16
    return fast_dtype(student)


def _fit(told: Task, workers: int, cluster: Cluster, losses: Losses) -> None:
    """Let Ray Train run the workers to the end, and pass on what they tell.

    Raises:
        StageError: they died too often.
    """
    runs, failed = _trainer(told, workers, cluster), list[Exception]()

    def fit() -> None:
        try:
            runs.fit()
        except Exception as error:
            failed.append(error)

    # Not in the main thread, where Ray Train takes Ctrl-C for itself, and ends with exit code 0.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(WATCH_SECONDS)
        losses.read()
    if failed:
        raise StageError(
            "training on the Ray cluster ended early",
            details=[(str(failed[0]).strip().splitlines() or [type(failed[0]).__name__])[-1]],
            hint="look at `ray status` and Ray's logs, lower train.sequences or "
            "train.sequence_length if memory ran out, and run the same command again: the last "
            "checkpoint is kept",
        ) from failed[0]


def _trainer(told: Task, workers: int, cluster: Cluster) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    results = told.folder / "ray"
    shutil.rmtree(results, ignore_errors=True)
    return TorchTrainer(
        work,
        train_loop_config={"task": ray.put(told)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu="GPU" in cluster.each,
            resources_per_worker=cluster.each,
        ),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=str(results),
            failure_config=ray.train.FailureConfig(max_failures=FAILURES),
        ),
        torch_config=TorchConfig(backend=cluster.kind.collectives),
    )


def _finished(place: Path, student: Any, config: TrainConfig) -> Trained:
    """Take the weights of the last checkpoint; a worker's error is raised here."""
    if (place / FAILED).is_file():
        raise StageError(**json.loads((place / FAILED).read_bytes()))
    last = last_checkpoint(place)
    if last is None or len((done := read_progress(last)).losses) < config.steps:
        raise StageError(
            "training on the Ray cluster left no finished checkpoint",
            details=[f"looked in {place}"],
            hint="does every machine see the same folder there? run the same command again",
        )
    read_masters(last, student)
    hidden.detach(student)
    return done


def last_checkpoint(place: Path) -> Path | None:
    """The last whole one, made by however many workers."""
    whole = [file.parent for file in place.glob(f"step-*/{PROGRESS}")]
    return max(whole, key=lambda folder: int(folder.name.removeprefix("step-")), default=None)


class Losses:
    """What the first worker tells of its steps, passed on to a meter."""

    def __init__(self, place: Path, start: int, meter: Meter) -> None:
        self.file, self.seen, self.meter, self.read_to = place / LOSSES, start, meter, 0
        self.file.write_bytes(b"")

    def read(self) -> None:
        """Count the steps that were written since."""
        with self.file.open("rb") as stream:
            stream.seek(self.read_to)
            while (line := stream.readline()).endswith(b"\n"):
                self.read_to += len(line)
                step, loss = json.loads(line)
                if step >= self.seen:  # after a restart some come again
                    self.seen = step + 1
                    self.meter.advance(1, f"{loss:.3f} nats per token")


def work(told: dict[str, Any]) -> None:
    """A worker of Ray Train's, from start to end."""
    import ray
    import ray.train

    task: Task = ray.get(told["task"])
    if task.device == device.PROCESSOR.name:
        torch.set_num_threads(1)
    guarded(task, ray.train.get_context())


def guarded(task: Task, context: Any) -> None:
    """Train; an error of our own goes to the run by a file.

    Raised, it would be taken for an accident, and training would be tried again.
    """
    try:
        _train(task, context)
    except OverproofError as error:
        said = {"what": error.what, "details": error.details, "hint": error.hint}
        if error.details or error.hint:  # else another worker knows more
            write_atomic(task.folder / FAILED, json.dumps(said).encode())


def _train(task: Task, context: Any) -> None:
    """A worker's loop.

    1. Take the own part of the step. 2. Its gradients, summed over all. 3. Update.
    4. Checkpoint when due: when the first worker says so, and at the end.
    """
    rank, config = context.get_world_rank(), task.config
    data = TrainSet.map(task.examples)
    student = task.student.thawed().requires_grad_(True)
    worker = Sharded(student, config, _device(task.device, context), task.compute)
    done = Trained(context.get_world_size(), engine="fsdp2")
    if last := last_checkpoint(task.folder):
        done = read_progress(last)
        done.workers = context.get_world_size()
        worker.restore(last)
    start = len(done.losses)
    saved = known = time.monotonic()
    worker.publish(start)
    cached, kind = batches(data, config, task.seed), divergence(config.divergence)
    for step in range(config.steps):
        batch = next(cached)
        if step < start:
            continue
        weights = worker.sha256() if step % config.digest_steps == 0 else None
        # 1.
        part = part_of(batch, data, kind, rank, done.workers)
        late = rank == 0 and time.monotonic() - saved > config.checkpoint_seconds
        total, tokens, due = worker.sums(part.weight, part.tokens, late)
        # 2. and 3.
        loss, square = worker.gradients(part, max(total, 1.0), step)
        worker.update(step, square)
        before, known = known, time.monotonic()
        done.add(Step(loss, int(tokens), weights, seconds=known - before))
        if rank == 0:
            with (task.folder / LOSSES).open("a") as stream:
                stream.write(f"{json.dumps([step, loss])}\n")
        # 4.
        if due or step + 1 == config.steps:
            _checkpoint(worker, task.folder, done, first=rank == 0, last=step + 1 == config.steps)
            saved = time.monotonic()


def _checkpoint(worker: Sharded, folder: Path, done: Trained, *, first: bool, last: bool) -> None:
    """All parts, then the file that makes them count, then the older ones go."""
    at = folder / f"step-{len(done.losses)}"
    if last:
        done.weights[len(done.losses)] = worker.sha256()
    worker.save(at)
    if first:
        write_atomic(at / PROGRESS, json.dumps(asdict(done)).encode())
        for old in folder.glob("step-*"):
            if old != at:
                remove(old)
    worker.sums(0.0)  # nobody goes on before it counts


def _device(kind: str, context: Any) -> torch.device:
    if kind == device.PROCESSOR.name:
        return torch.device(kind)
    # Ray shows a process all devices of its machine, or its own alone.
    index = context.get_local_rank() % torch.accelerator.device_count()
    torch.accelerator.set_device_index(index)
    return torch.device(kind, index)
