"""FSDP2's engine, one process: what the shared-memory engine computes, in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_teacher as tiny
import tiny_v4
import torch
import torch.distributed as dist
import training

from overproof.core.console import meter
from overproof.core.device import PROCESSOR
from overproof.core.errors import StageError, UsageError
from overproof.core.methods import Hidden, OnPolicy, Quantize
from overproof.core.sections import TrainConfig
from overproof.student import elsewhere, hidden
from overproof.student.examples import build_train_set
from overproof.student.flat import Flat
from overproof.student.train import read_progress
from overproof.teacher.cluster import Cluster

WEIGHT_TOLERANCE = 1e-4  # of the largest of a tensor
# Muon's products are in bf16, and it makes every gradient as long.
MUON_TOLERANCE = 1e-2
ROUNDING = 0.2  # of the way that the weights went
ONE = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
HERE = Cluster(PROCESSOR, 1)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The workers that Ray Train would start are this process."""
    monkeypatch.setattr(elsewhere, "_compute", lambda *_: torch.float32)
    monkeypatch.setattr(elsewhere, "_fit", lambda told, *_: elsewhere._train(told, ONE))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "examples"
    training.data(folder)
    return folder


def run(examples: Path, folder: Path, config: TrainConfig, model=None):
    model = model or training.student()
    with meter("test", config.steps, "steps") as progress:
        done = elsewhere.trainer(HERE)(model, examples, config, 3, folder, progress, None)
    return model, done


@torch.no_grad()
def far(one, other) -> float:
    """The largest difference of weights, as a part of the largest of their tensor."""
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for (_, a), (_, b) in pairs)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, WEIGHT_TOLERANCE),
        ({"quantize": Quantize(start=0.5)}, WEIGHT_TOLERANCE),
        ({"optimizer": "muon"}, MUON_TOLERANCE),
    ],
    ids=["adamw", "quantized", "muon"],
)
def test_it_computes_what_the_engine_of_one_machine_does(
    examples: Path, tmp_path: Path, changes: dict, tolerance: float
) -> None:
    config, wanted = training.config(**changes), training.student()
    worker = training.alone(wanted, examples, config)
    got, done = run(examples, tmp_path, config)
    assert far(got, wanted) < tolerance
    assert far(wanted, training.student()) > 0.02
    assert done.engine == "fsdp2"
    assert done.losses[-1] == pytest.approx(float(worker.shared.loss.sum()), abs=1e-3)
    weights = Flat(got, torch.float32)
    weights.adopt(got)
    assert done.weights[config.steps] == weights.sha256()


def test_hidden_states_are_learned_and_their_projection_goes(tmp_path: Path) -> None:
    training.states(tmp_path / "set")
    config = training.config(hidden=Hidden(), steps=4)
    wanted = training.student()
    hidden.attach(wanted, 32, 3)
    training.alone(wanted, tmp_path / "set", config)
    hidden.detach(wanted)
    got, _ = run(tmp_path / "set", tmp_path / "run", config)
    assert far(got, wanted) < WEIGHT_TOLERANCE


def test_a_mixture_of_experts_that_reads_one_example_a_row(tmp_path: Path) -> None:
    """Some of its parameters only choose, and have no gradient."""
    texts = tiny.examples(24)
    build_train_set(tmp_path / "set", (1, 7), texts, training.vocabulary(), None, alone=True)
    config = training.config(steps=3, sequences=2)
    wanted, start = tiny_v4.model(), tiny_v4.model()
    worker = training.alone(wanted, tmp_path / "set", config)
    got, done = run(tmp_path / "set", tmp_path / "run", config, tiny_v4.model())
    # AdamW makes a full step of a gradient that is rounding alone; the losses tell more.
    assert done.losses[-1] == pytest.approx(float(worker.shared.loss.sum()), abs=1e-4)
    assert abs(done.losses[-1] - done.losses[0]) > 0.1
    assert far(got, wanted) < ROUNDING * far(wanted, start)


class KilledError(Exception):
    """The process is killed, as far as it knows."""


@pytest.mark.parametrize("changes", [{}, {"quantize": Quantize(start=0.2)}, {"optimizer": "muon"}])
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_bits(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    config = training.config(digest_steps=5, **changes)
    whole, calm = run(examples, tmp_path / "whole", config)
    update = elsewhere.Sharded.update

    def dies(worker: elsewhere.Sharded, step: int, square: float) -> None:
        if step == 7:
            raise KilledError
        update(worker, step, square)

    clock = iter(range(0, 100_000, 1000))  # a checkpoint is due at every step
    with monkeypatch.context() as patch:
        patch.setattr(elsewhere.time, "monotonic", lambda: next(clock))
        patch.setattr(elsewhere.Sharded, "update", dies)
        with pytest.raises(KilledError):
            run(examples, tmp_path / "cut", config)
    last = elsewhere.last_checkpoint(tmp_path / "cut/sharded")
    assert last is not None
    assert len(read_progress(last).losses) == 7
    again, done = run(examples, tmp_path / "cut", config)
    assert done == calm
    assert far(again, whole) == 0.0
    kept, same = run(examples, tmp_path / "cut", config)  # nothing is left to do
    assert same == calm
    assert far(kept, whole) == 0.0


def test_a_loss_that_is_not_finite_names_its_records(examples: Path, tmp_path: Path) -> None:
    broken = training.student()
    with torch.no_grad():
        broken.model.embed_tokens.weight[9:40] = float("nan")
    told: list[elsewhere.Task] = []

    def work(task: elsewhere.Task, *_: object) -> None:
        told.append(task)
        elsewhere.guarded(task, ONE)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elsewhere, "_fit", work)
        with pytest.raises(StageError, match="diverged at step 0") as caught:
            run(examples, tmp_path, training.config(), broken)
    assert any(line.startswith("record ") for line in caught.value.details)
    assert "learning_rate" in str(caught.value.hint)


def test_losses_are_told_once_though_steps_come_again(tmp_path: Path) -> None:
    told: list[str] = []
    meter = SimpleNamespace(advance=lambda count, note: told.append(note))
    losses = elsewhere.Losses(tmp_path, 1, meter)
    file = tmp_path / elsewhere.LOSSES
    file.write_text("[1, 0.5]\n[2, 0.25]\n[3, 0.1")  # the last is still being written
    losses.read()
    with file.open("a") as stream:
        stream.write("25]\n[2, 0.25]\n[3, 0.125]\n[4, 0.0625]\n")
    losses.read()
    losses.read()
    assert told == [f"{loss} nats per token" for loss in ("0.500", "0.250", "0.125", "0.062")]


def test_own_text_is_refused_before_anything_is_spent() -> None:
    asked = SimpleNamespace(train=training.config(on_policy=OnPolicy(warm_start=0.1)))
    with pytest.raises(UsageError, match="not on the student's own"):
        elsewhere.demand(asked)
