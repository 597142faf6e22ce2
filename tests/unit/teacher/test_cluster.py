"""What is demanded of a cluster's machines, and how a model travels to them; without Ray."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_teacher as tiny
import tiny_v4
import torch

from overproof.core.device import KINDS, PROCESSOR
from overproof.core.errors import StageError, UsageError
from overproof.teacher import cluster
from overproof.teacher.frozen import Frozen


@pytest.fixture
def machine(tmp_path: Path) -> cluster.Machine:
    """This one, as it says itself."""
    mark = tmp_path / "mark"
    mark.touch()
    return cluster.look("10.0.0.1", str(mark))


def test_a_machine_says_what_it_is(machine: cluster.Machine, tmp_path: Path) -> None:
    assert machine.kind in KINDS
    assert machine.sees
    assert machine.runs["torch"] == torch.__version__
    assert len(machine.runs["overproof"]) == 64
    assert not cluster.look("10.0.0.1", str(tmp_path / "elsewhere")).sees


def test_equal_machines_are_taken(
    machine: cluster.Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.demand([machine, replace(machine, name="10.0.0.2")], tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runs": {"torch": "2.12.0"}}, "10.0.0.2: torch 2.12.0, here "),
        ({"runs": {"overproof": "0" * 64}}, "10.0.0.2: overproof 0000000000000000, here "),
        ({"sees": False}, "10.0.0.2 does not see it"),
    ],
)
def test_a_machine_that_differs_is_refused_by_name(
    machine: cluster.Machine, tmp_path: Path, changes: dict, said: str
) -> None:
    if "runs" in changes:
        changes = {"runs": {**machine.runs, **changes["runs"]}}
    with pytest.raises(StageError) as caught:
        cluster.demand([machine, replace(machine, name="10.0.0.2", **changes)], tmp_path)
    assert said in caught.value.render()
    assert "hint: " in caught.value.render()


def test_several_processors_are_said_to_matter(
    machine: cluster.Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.demand([machine, replace(machine, processor="another")], tmp_path)
    assert "answers follow from who drew them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "each"),
    [
        ("cpu", {"CPU": 1}),
        ("cuda", {"CPU": 1, "GPU": 1}),
        ("npu", {"CPU": 1, "NPU": 1}),
        ("xpu", {"CPU": 1, "GPU": 1}),
    ],
)
def test_each_worker_is_given_a_device(kind: str, each: dict) -> None:
    assert cluster.Cluster(KINDS[kind], 4).each == each


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UsageError, match="needs the extra `ray`") as caught,
        cluster.joined("auto", tmp_path),
    ):
        pass
    assert "'.[ray]'" in str(caught.value.hint)


def test_a_processor_is_no_accelerator() -> None:
    assert cluster.Cluster(PROCESSOR, 2).kind.collectives == "gloo"


@pytest.mark.parametrize("made", [tiny.model, tiny_v4.model], ids=["llama", "deepseek_v4"])
def test_a_model_arrives_as_it_was_and_its_readers_share_it(made) -> None:
    model = made()
    frozen = Frozen.of(model)
    skeleton = pickle.loads(pickle.dumps(frozen.skeleton))  # noqa: S301
    frozen.values.flags.writeable = False
    thawed = Frozen(skeleton, frozen.values).thawed()
    wanted = dict(model.named_parameters())
    got = dict(thawed.named_parameters())
    assert list(got) == list(wanted)
    start = frozen.values.ctypes.data
    for name, values in got.items():
        assert torch.equal(values, wanted[name]), name
        assert values.dtype == wanted[name].dtype
        assert start <= values.data_ptr() < start + len(frozen.values)
        assert (values.data_ptr() - start) % 64 == 0
    ids = torch.arange(2, 12)[None]
    with torch.inference_mode():
        assert torch.equal(thawed(ids).logits, model(ids).logits)
