"""Who samples and trains in a run: this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overproof.core import device
from overproof.core.recipe import Recipe

device.prepare()

from overproof.student.train import Trainer, train  # noqa: E402
from overproof.teacher import sample  # noqa: E402
from overproof.teacher.sample import Pool  # noqa: E402


@dataclass(frozen=True)
class Engines:
    """Who draws the teacher's answers, and what trains the student."""

    pool: Pool = sample.here
    train: Trainer = train


@contextmanager
def engines(address: str | None, recipe: Recipe, folder: Path) -> Iterator[Engines]:
    """Those of this machine, or of a cluster that is joined for the time of the block.

    Args:
        address: see `cluster.joined`; None: this machine.
        folder: of the run.

    Raises:
        UsageError: the recipe asks for what a cluster cannot do, or there is none.
        StageError: a machine of the cluster lacks something.
    """
    if address is None:
        yield Engines()
        return
    # FSDP2 takes a second to import.
    from overproof.student import elsewhere as training
    from overproof.teacher import cluster
    from overproof.teacher import elsewhere as sampling

    training.demand(recipe)
    with cluster.joined(address, folder) as found:
        yield Engines(sampling.pool(found), training.trainer(found))
