"""A Ray cluster: joined, and each of its machines looked at before anything is spent on it.

Ray is an extra, imported when it is asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from overproof.core import device
from overproof.core.code import source_sha256
from overproof.core.console import note
from overproof.core.errors import StageError, UsageError, install

# Whose versions numbers, or the form of what machines send each other, may follow from.
PACKAGES = ("ray", "torch", "transformers")
CLIENT = "ray://"
PATIENCE_SECONDS = 300  # for the slowest machine to import torch, over a network folder too
LAYER = "student"  # the last that runs on other machines


@dataclass(frozen=True)
class Machine:
    """What one machine of a cluster says of itself.

    Attributes:
        name: its address.
        runs: code and packages by name, each with its digest or version.
        processor: its model.
        kind: of device, see `device.Kind`.
        sees: whether the run's folder is there.
    """

    name: str
    runs: Mapping[str, str]
    processor: str
    kind: str
    sees: bool


@dataclass(frozen=True)
class Cluster:
    """What a run may use.

    Attributes:
        kind: of device that models run on.
        places: workers that can run at once, a device each.
    """

    kind: device.Kind
    places: int

    @property
    def each(self) -> dict[str, float]:
        """What Ray is to give each of them, a device among it."""
        assert self.kind.resource  # see `device.kind_of_many`
        return {"CPU": 1, self.kind.resource: 1}


@contextmanager
def joined(address: str, folder: Path) -> Iterator[Cluster]:
    """Join a cluster for the time of the block.

    1. Join it; nothing is sent to Ray's makers.
    2. Let each machine say what it is.
    3. Refuse what would end badly.

    Args:
        address: `auto`, for the one that runs here, or HOST:PORT of its head.
        folder: of the run, which every machine must see under this name.

    Raises:
        UsageError: Ray is not installed, or no cluster is there.
        StageError: a machine lacks something.
    """
    ray = _ray()
    if address.startswith(CLIENT):
        raise UsageError(
            "--ray takes the address of a cluster that this machine is part of",
            details=[f"got {address}, wanted auto or HOST:PORT"],
            hint="run the command on a machine of the cluster",
        )
    # 1.
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has put a handler of its own in its place
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            "no Ray cluster could be joined",
            details=[f"--ray {address}: {(str(error).splitlines() or [''])[0]}"],
            hint="start one: `ray start --head --disable-usage-stats` here, and "
            "`ray start --address HOST:PORT` on every other machine",
        ) from error
    try:
        # 2. and 3.
        machines = _look(ray, folder)
        demand(machines, folder)
        kind = device.kind_of_many(one.kind for one in machines)
        places = int(ray.cluster_resources().get(kind.resource, 0))
        if not places:
            raise StageError("the Ray cluster has no processor to give", hint="ray status")
        names = {"cpu": "processor cores"}.get(kind.name, kind.name)
        note(f"ray: {len(machines)} machines, {places} {names}")
        with redirect_stdout(sys.stderr):  # Ray prints what dies; stdout is for results
            yield Cluster(kind, places)
    finally:
        ray.shutdown()


def _ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PATIENCE_SECONDS))
    device.prepare()
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError("--ray needs the extra `ray`", hint=install("ray")) from error
    return ray


def _look(ray: Any, folder: Path) -> list[Machine]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=2)(look)
    nodes = {one["NodeID"]: one["NodeManagerAddress"] for one in ray.nodes() if one["Alive"]}
    folder.mkdir(parents=True, exist_ok=True)
    # Another run's folder of this name has no such file in it.
    mark = folder / f".seen-{uuid.uuid4().hex}"
    mark.touch()
    try:
        there = {one: NodeAffinitySchedulingStrategy(one, soft=False) for one in nodes}
        asked = [
            task.options(scheduling_strategy=there[node]).remote(name, str(mark.absolute()))
            for node, name in nodes.items()
        ]
        found: list[Machine] = ray.get(asked, timeout=PATIENCE_SECONDS)
    except ray.exceptions.RayError as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise StageError(
            "a machine of the Ray cluster cannot run Overproof",
            details=[cause],
            hint="install the same version on every machine, in the environment that Ray runs in",
        ) from error
    finally:
        with suppress(FileNotFoundError):
            mark.unlink()
    return found


def look(name: str, mark: str) -> Machine:
    """What this machine is, said by itself.

    Args:
        mark: a file in the run's folder.
    """
    import torch

    runs = {"overproof": source_sha256(LAYER)}
    for package in PACKAGES:
        try:
            runs[package] = version(package)
        except PackageNotFoundError:
            runs[package] = "not installed"
    kind = device.kind_here(torch.accelerator)
    return Machine(name, runs, device.processor().model, kind.name, Path(mark).is_file())


def demand(machines: Sequence[Machine], folder: Path) -> None:
    """Refuse machines that cannot work together; say where their numbers may differ.

    Raises:
        StageError: one runs other code than this one, or does not see the run's folder.
    """
    own = look("", "").runs
    wrong = [
        f"{one.name}: {package} {one.runs[package][:16]}, here {own[package][:16]}"
        for one in machines
        for package in own
        if one.runs[package] != own[package]
    ]
    if wrong:
        raise StageError(
            "machines of the Ray cluster run other code than this one",
            details=wrong,
            hint="install the same versions on every machine: constraints.txt pins them",
        )
    blind = [one.name for one in machines if not one.sees]
    if blind:
        raise StageError(
            f"{folder} is not on every machine of the Ray cluster",
            details=[f"{name} does not see it" for name in blind],
            hint="give --out a folder that all of them mount under one name, such as NFS",
        )
    processors = sorted({one.processor for one in machines})
    if len(processors) > 1:
        note(f"ray: several processors, {', '.join(processors)}: answers follow from who drew them")
