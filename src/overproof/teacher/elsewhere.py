"""Drawing the teacher's answers on a Ray cluster: a pool of actors, each with the model.

Weights and requests are put into Ray's object store once, where all actors of a machine read the
same memory. Answers stream back to the run's own process, into the journal that a run on one
machine writes: what a killed run has is kept, whoever drew it. Which actor draws a request
changes nothing in its answer, which follows from the request's own seed.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import nn  # noqa: E402

from overproof.core.errors import StageError  # noqa: E402
from overproof.teacher.cluster import Cluster  # noqa: E402
from overproof.teacher.forward import LINE_BYTES  # noqa: E402
from overproof.teacher.request import Drawing, Request  # noqa: E402
from overproof.teacher.sample import Pool, drawer, drawn  # noqa: E402

WAVES = 4  # times that a task fills an actor's slots: long, so that few stand empty at its end
ANSWERS = 16  # that an actor sends together: what a killed run loses of each actor at most
RESTARTS = 4  # of one actor; more is no accident
NUMBER = "unit"
SCHEMA = pa.schema([("key", pa.string()), ("tokens", pa.list_(pa.int64())), ("signals", pa.binary())])


@dataclass(frozen=True)
class Frozen:
    """A model on its way through the object store, whose readers share its memory.

    Attributes:
        skeleton: the model with parameters that have a shape and no values.
        values: of all of them, one after another, each on a line of its own.
    """

    skeleton: Any
    values: NDArray[np.uint8]

    @classmethod
    def of(cls, model: Any) -> Frozen:
        """Copy the values out of a model."""
        named = list(model.named_parameters())
        memo: dict[int, Any] = {
            id(one): nn.Parameter(torch.empty_like(one, device="meta"), requires_grad=False)
            for _, one in named
        }
        places, size = _places(model)
        values = np.zeros(size, np.uint8)
        for name, one in named:
            raw = one.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            values[places[name] : places[name] + len(raw)] = raw
        return cls(copy.deepcopy(model, memo), values)

    def thawed(self) -> Any:
        """The model, on the same memory."""
        places, _ = _places(self.skeleton)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nobody may write to it, which nobody does
            values = torch.from_numpy(self.values)
        real = {}
        for name, one in self.skeleton.named_parameters():
            raw = values[places[name] : places[name] + one.numel() * one.element_size()]
            real[id(one)] = nn.Parameter(raw.view(one.dtype).view(one.shape), requires_grad=False)
        for module in self.skeleton.modules():
            for name, one in module._parameters.items():
                if one is not None:
                    module._parameters[name] = real[id(one)]
        return self.skeleton


def _places(model: Any) -> tuple[dict[str, int], int]:
    """Where each parameter begins, and where the last ends; bytes."""
    places, end = {}, 0
    for name, one in model.named_parameters():
        places[name] = end
        end += math.ceil(one.numel() * one.element_size() / LINE_BYTES) * LINE_BYTES
    return places, end


@dataclass(frozen=True)
class Task:
    """What every actor is told.

    Attributes:
        units: requests that are drawn together, by number.
        device: torch's name of the kind of device.
    """

    model: Frozen
    prefix: tuple[int, ...]
    units: list[list[Request]]
    drawing: Drawing
    places: int
    device: str


class Drawer:
    """An actor: it holds the model, and draws the units whose numbers it is given."""

    def __init__(self, task: Any) -> None:
        import ray

        told: Task = ray.get(task)
        model = told.model.thawed()
        if told.device == device.PROCESSOR.name:
            torch.set_num_threads(1)
        else:
            model = model.to(told.device)
        self.units = told.units
        self.by = drawer(model, told.prefix, told.drawing, told.places)

    def __call__(self, numbers: pa.Table) -> Iterator[pa.Table]:
        """Answers as they end, `ANSWERS` at a time."""
        requests = [one for at in numbers[NUMBER].to_pylist() for one in self.units[at]]
        answers = drawn(self.by, requests)
        while some := list(islice(answers, ANSWERS)):
            columns = [list(column) for column in zip(*some, strict=True)]
            yield pa.table(columns, schema=SCHEMA)


def pool(cluster: Cluster) -> Pool:
    """The cluster as those who draw, see `sample.draw_all`."""

    def draw(
        model: Any,
        prefix: Sequence[int],
        units: list[list[Request]],
        drawing: Drawing,
        places: int,
    ) -> Iterator[tuple[str, list[int], bytes]]:
        import ray

        told = Task(Frozen.of(model), tuple(prefix), units, drawing, places, cluster.kind.name)
        try:
            yield from _rounds(ray.put(told), units, drawing, cluster)
        except ray.exceptions.RayError as error:
            raise StageError(
                "sampling on the Ray cluster ended early",
                details=[(str(error).strip().splitlines() or [type(error).__name__])[-1]],
                hint="look at `ray status` and Ray's logs, and run the same command again: "
                "finished answers are kept",
            ) from error

    return draw


def _rounds(
    told: Any, units: list[list[Request]], drawing: Drawing, cluster: Cluster
) -> Iterator[tuple[str, list[int], bytes]]:
    """Draw until nothing is missing.

    An actor that dies begins its task again. Where the machine that goes on has another processor
    an answer may end elsewhere, so that the task's parts are cut at other places, of which Ray has
    the first already: what falls between is missing, and is drawn in another round.
    """
    missing = {request.key for unit in units for request in unit}
    while missing:
        left = [at for at, unit in enumerate(units) if any(one.key in missing for one in unit)]
        before = len(missing)
        for key, tokens, signals in _round(told, left, units, drawing, cluster):
            missing.discard(key)
            yield key, tokens, signals
        if len(missing) == before:
            raise StageError(
                "the Ray cluster drew no answer",
                details=[f"{before:,} are missing"],
                hint="look at `ray status`, and run the same command again",
            )


def _round(
    told: Any, left: list[int], units: list[list[Request]], drawing: Drawing, cluster: Cluster
) -> Iterator[tuple[str, list[int], bytes]]:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = 1  # bytes: what an actor yields is sent, and not gathered first
    count = sum(len(units[at]) for at in left)
    tasks = max(min(cluster.places, len(left)), math.ceil(count / (drawing.slots * WAVES)))
    # As on one machine: each task gets the same mix of lengths.
    shares = [pa.table({NUMBER: left[at::tasks]}) for at in range(min(tasks, len(left)))]
    answers = ray.data.from_arrow(shares).map_batches(
        Drawer,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_args=(told,),
        compute=ray.data.ActorPoolStrategy(size=min(cluster.places, len(shares))),
        **cluster.worker(max_restarts=RESTARTS, max_task_retries=RESTARTS),
    )
    for some in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in some.to_pylist():
            yield row["key"], row["tokens"], row["signals"]
