"""Drawing the teacher's answers on a Ray cluster: a pool of actors, each with the model.

Weights and requests are put into Ray's object store once, where all actors of a machine read the
same memory. Answers stream back to the run's own process, into the journal that a run on one
machine writes: what a killed run has is kept, whoever drew it. Which actor draws a request
changes nothing in its answer, which follows from the request's own seed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from overproof.core import device

device.prepare()

import pyarrow as pa  # noqa: E402
import torch  # noqa: E402

from overproof.core.errors import StageError  # noqa: E402
from overproof.teacher.cluster import Cluster  # noqa: E402
from overproof.teacher.frozen import Frozen  # noqa: E402
from overproof.teacher.request import Drawing, Request  # noqa: E402
from overproof.teacher.sample import Pool, drawer, drawn  # noqa: E402

WAVES = 4  # times that a task fills an actor's slots: long, so that few stand empty at its end
ANSWERS = 16  # that an actor sends together: what a killed run loses of each actor at most
NUMBER = "unit"
SCHEMA = pa.schema(
    [("key", pa.string()), ("tokens", pa.list_(pa.int64())), ("signals", pa.binary())]
)


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
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    wanted = dict(cluster.each)
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
        num_cpus=wanted.pop("CPU"),
        num_gpus=wanted.pop("GPU", None),
        resources=wanted or None,
    )
    for some in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in some.to_pylist():
            yield row["key"], row["tokens"], row["signals"]
