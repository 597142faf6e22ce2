"""Two Ray nodes on this machine: workers are killed, and the results are those of calm runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import tiny_teacher as tiny
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tiny_stage import samples as samples_of

pytest.importorskip("ray", reason="needs the extra `ray`")
from ray.cluster_utils import Cluster as Nodes
from test_verified import certified

from overproof.core.artifact import Artifact, build
from overproof.core.config import find_recipe, load_recipe
from overproof.core.recipe import Recipe
from overproof.student import arms, elsewhere
from overproof.student.initial import initial
from overproof.student.train import Trainer
from overproof.teacher import answers, cluster, signals
from overproof.teacher.elsewhere import pool
from overproof.teacher.sample import Pool, here

# Ray's own settings are deprecated as they are read.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]
STORE_BYTES = 100 << 20  # of each node; the least that Ray takes is 75 MiB
PATIENCE_SECONDS = 300
STEPS = 120
# One and two workers differ by rounding alone, here in fp32.
LOSS_TOLERANCE = 1e-5  # nats per token, of any step
WEIGHT_TOLERANCE = 2**-8  # of the largest of a tensor: a step of the bf16 that is released


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Cluster]:
    """A cluster of two nodes with a core each, joined."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # A busy machine is no fault.
    os.environ["RAY_worker_register_timeout_seconds"] = str(PATIENCE_SECONDS)  # noqa: SIM112
    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    nodes = Nodes(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        nodes.add_node(**node)
        with cluster.joined(nodes.address, tmp_path_factory.mktemp("seen")) as joined:
            assert joined.places == 2
            yield joined
    finally:
        nodes.shutdown()


def workers(word: str) -> list[psutil.Process]:
    """Processes of this cluster whose title has the word."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            if word in " ".join(one.cmdline()):
                found.append(one)
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def one_killed(word: str, ready: Callable[[], bool]) -> Iterator[list[int]]:
    """Kill one of these workers in the block, as soon as it is time; yields who was."""
    killed = list[int]()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if ready() and (found := workers(word)):
                found[0].send_signal(signal.SIGKILL)
                killed.append(found[0].pid)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def recipe(length: int = 256) -> Recipe:
    changes = [
        "signals={kind: top-k, top_k: 6, tail_draws: 4, while_sampling: true}",
        "sample={prompts: 40, heldout_prompts: 4, answers: 10, max_new_tokens: 24, batch: 8,"
        " temperature: 1.0}",
        "teacher.system=null",
        "student.layers=2", "student.mlp_width=null", "student.vocabulary=290",
        "student.calibration_tokens=40",
        f"train={{steps: {STEPS}, sequences: 4, sequence_length: {length}, learning_rate: 0.01,"
        " checkpoint_seconds: 1, digest_steps: 40}",
    ]  # fmt: skip
    return load_recipe(find_recipe("support"), changes)


def sampled(folder: Path, by: Pool) -> Artifact:
    """The stage `samples`, with the signals beside the answers."""
    folder.mkdir()
    teacher = tiny.teacher()
    terms = build(folder / "stages", "terms", inputs={}, config={}, make=lambda _: {})
    return answers.sample(
        tiny.loads(teacher),
        certified(folder, "train", None),
        certified(folder, "heldout", None),
        {"teacher": teacher.resource},
        terms,
        recipe(),
        folder / "stages",
        by,
    )


def test_a_sampling_worker_is_killed(two: cluster.Cluster, tmp_path: Path) -> None:
    """The answers and their signals are those that this machine draws, bit for bit."""
    wanted = sampled(tmp_path / "calm", here)

    def ready() -> bool:
        journals = (tmp_path / "killed").glob("stages/.samples.*/.scratch/journal")
        return any(file.stat().st_size > 0 for file in journals)

    with one_killed("MapWorker", ready) as killed:
        got = sampled(tmp_path / "killed", pool(two))
    assert killed, "it ended before a worker could be killed"
    assert got.sha256 == wanted.sha256


def trained(folder: Path, by: Trainer) -> Artifact:
    """The stage `student`."""
    teacher, asked = tiny.teacher(), recipe(length=48)
    made = samples_of(folder, asked, None, 60)
    load, resource = tiny.loads(teacher), teacher.resource
    kept = signals.cache(load, made, asked, {"teacher": resource}, folder)
    start = initial(load, made, kept, asked, resource, folder)
    return arms.students(load, start, made, kept, asked, resource, folder, by)[0]


def alone(told: elsewhere.Task, *_: object) -> None:
    """The same training by one worker, in this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        one = {"get_world_rank": lambda: 0, "get_world_size": lambda: 1}
        elsewhere._train(told, SimpleNamespace(**one))
    finally:
        dist.destroy_process_group()


def test_a_training_worker_is_killed(
    two: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is that of a calm run, bit for bit, and that of one worker up to rounding."""
    monkeypatch.setattr(elsewhere, "_compute", lambda *_: torch.float32)
    by = elsewhere.trainer(two)

    def ready() -> bool:
        return any((tmp_path / "killed").glob(".student.*/.scratch/train/sharded/*/progress.json"))

    with one_killed("RayTrainWorker", ready) as killed:
        got = trained(tmp_path / "killed", by)
    assert killed, "it ended before a worker could be killed"
    calm = trained(tmp_path / "calm", by)
    assert got.sha256 == calm.sha256
    assert got.facts["workers"] == 2
    with monkeypatch.context() as patch:
        patch.setattr(elsewhere, "_fit", alone)
        single = trained(tmp_path / "single", by)
    assert single.facts["workers"] == 1
    losses = [np.array(one.facts["losses"]) for one in (got, single)]
    weights = [load_file(one.file("model.safetensors")) for one in (got, single)]
    assert np.abs(losses[0] - losses[1]).max() < LOSS_TOLERANCE
    assert losses[0][-20:].mean() < 0.7 * losses[0][:5].mean()
    for name, values in weights[0].items():
        far = (values.float() - weights[1][name].float()).abs().max()
        assert far < WEIGHT_TOLERANCE * values.float().abs().max(), name
