"""The doctor's rules on made-up machines, and its look at this one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from overproof import cli, doctor, machine
from overproof.core import device
from overproof.core.config import find_recipe, load_recipe
from overproof.core.device import Processor
from overproof.core.errors import StageError
from overproof.machine import Machine, Package

GOOD = Machine(
    python=(3, 12, 1),
    packages=(
        Package("typer", "", "0.20", "0.29.2"),
        Package("torch", "distill", "2.13", "2.13.0+cpu"),
    ),
    cores=2,
    processor=Processor("some processor", frozenset({"avx2", "amx_bf16"})),
    memory_bytes=16_000_000_000,
    memory_available_bytes=9_000_000_000,
    shared_free_bytes=2_000_000_000,
    disk_free_bytes=50_000_000_000,
    folder=Path("/work"),
    omp_wait_policy=None,
    torch=None,
    accelerators=(),
    npu=None,
    cann=False,
    teacher=None,
    engine=None,
    engine_info="AVX AVX2",
    recipe=None,
    keys_folder=Path("/home/someone/.config/overproof"),
    keys=("default",),
    open_keys=(),
    versions={"torch": "2.13.0+cpu", "xllamacpp": "2026.10.11549"},
)


def check(name: str, **changes: Any) -> doctor.Check:
    return next(c for c in doctor.judge(replace(GOOD, **changes)) if c.name == name)


def test_a_good_machine_runs_the_demo() -> None:
    result = doctor.Result(doctor.judge(GOOD))
    assert {one.state for one in result.checks} == {"ok"}
    assert result.exit_code == 0
    assert doctor.render(result).endswith("the demo can run here: overproof distill support")


@pytest.mark.parametrize(
    ("name", "changes", "state", "remedy"),
    [
        ("python", {"python": (3, 10, 13)}, "missing", "make PYTHON="),
        ("packages", {"packages": None}, "warning", "pip install -c constraints.txt -e '.[all]'"),
        (
            "extra distill",
            {"packages": (Package("torch", "distill", "2.13", None),)},
            "missing",
            "in the checkout: pip install -c constraints.txt -e '.[distill]'",
        ),
        (
            "base install",
            {"packages": (Package("typer", "", "0.20", "0.9.4"),)},
            "missing",
            "in the checkout: pip install -c constraints.txt -e '.'",
        ),
        ("torch", {"torch": "No module named 'torch'"}, "missing", "pip install"),
        (
            "torch",
            {"torch": "Failed to load the backend extension: torch_npu"},
            "missing",
            "TORCH_DEVICE_BACKEND_AUTOLOAD=0",
        ),
        (
            "teacher",
            {"teacher": StageError("not installed", hint="pip install --no-deps x")},
            "missing",
            "pip install --no-deps x",
        ),
        ("engine", {"engine": "no AVX2"}, "missing", "pip install"),
        ("recipe", {"recipe": StageError("no recipe named 'support'")}, "missing", "pip install"),
        ("cores", {"cores": 1}, "warning", None),
        ("bf16", {"processor": Processor("old", frozenset({"avx2"}))}, "warning", None),
        ("bf16", {"processor": Processor("Arm", frozenset({"bf16"}))}, "ok", None),
        ("memory", {"memory_bytes": 4_000_000_000}, "missing", "container"),
        ("memory", {"memory_available_bytes": 2_000_000_000}, "warning", "ps aux"),
        ("memory", {"memory_bytes": 5_999_999_999, "cores": 64}, "missing", "container"),
        ("memory", {"cores": 5}, "ok", None),
        ("memory", {"cores": 6}, "warning", "taskset -c 0-4 overproof distill support"),
        ("memory", {"cores": 64}, "missing", "taskset -c 0-13 overproof distill support"),
        ("shared memory", {"shared_free_bytes": 64 << 20}, "missing", "--shm-size=2g"),
        ("shared memory", {"shared_free_bytes": 1_000_000_000}, "ok", None),
        (
            "shared memory",
            {"shared_free_bytes": 1_000_000_000, "cores": 64},
            "missing",
            "--shm-size=2g",
        ),
        (
            "shared memory",
            {"shared_free_bytes": 1_000_000_000, "processor": Processor("old", frozenset())},
            "missing",
            "--shm-size=2g",
        ),
        ("shared memory", {"shared_free_bytes": None}, "ok", None),
        ("disk", {"disk_free_bytes": 1_000_000_000}, "missing", "--out DIR"),
        ("openmp", {"omp_wait_policy": "ACTIVE"}, "warning", "export OMP_WAIT_POLICY=PASSIVE"),
        ("openmp", {"omp_wait_policy": "passive"}, "ok", None),
        ("accelerator", {"accelerators": ("1 x cuda",)}, "ok", None),
        ("ascend", {"npu": "2.13.0"}, "warning", "set_env.sh"),
        ("ascend", {"npu": "2.13.0", "cann": True}, "ok", None),
        ("ascend", {"npu": "2.10.0", "cann": True}, "warning", "'torch-npu==2.13.*'"),
        ("keys", {"keys": ()}, "ok", None),
        ("keys", {"open_keys": (Path("/k/a.key"),)}, "warning", "chmod 600 /k/a.key"),
    ],
)
def test_each_finding_has_its_state_and_remedy(
    name: str, changes: dict[str, Any], state: str, remedy: str | None
) -> None:
    found = check(name, **changes)
    assert found.state == state
    assert (found.remedy is None) if remedy is None else (remedy in (found.remedy or ""))


def test_the_demo_has_as_many_sequences_as_is_counted_on() -> None:
    recipe = load_recipe(find_recipe(machine.DEMO_RECIPE))
    assert recipe.train.sequences == doctor.DEMO_SEQUENCES


def test_what_the_remedy_gives_is_enough() -> None:
    """2 GiB hold what the slowest processor with many cores shares; 14 cores fit in 16 GB."""
    old = Processor("old", frozenset())
    assert check("shared memory", shared_free_bytes=2 << 30, cores=64, processor=old).state == "ok"
    assert check("memory", memory_available_bytes=16_000_000_000, cores=14).state == "ok"


def test_what_is_missing_is_named_and_gives_exit_code_1() -> None:
    result = doctor.Result(doctor.judge(replace(GOOD, engine="absent", disk_free_bytes=0)))
    assert result.exit_code == 1
    assert doctor.render(result).endswith("the demo cannot run here; missing: engine, disk")


def test_a_warning_does_not_stop_the_demo() -> None:
    assert doctor.Result(doctor.judge(replace(GOOD, cores=1))).exit_code == 0


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.13.0+cpu", (2, 13, 0)), ("2026.10.11549", (2026, 10, 11549)), ("1rc1", (1,)), ("x", ())],
)
def test_release_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert machine.release(version) == numbers


def test_a_container_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, info = tmp_path / "memory.max", tmp_path / "meminfo"
    (tmp_path / "own").write_text("0::/inside\n")
    (tmp_path / "inside").mkdir()
    limit.write_text("1000000\n")
    info.write_text("MemTotal: 9 kB\nMemAvailable:   500 kB\n")
    monkeypatch.setattr(device, "CGROUPS", tmp_path)
    monkeypatch.setattr(device, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "MEMINFO", info)
    assert machine._read_memory() == (1_000_000, 512_000)
    (tmp_path / "inside" / "memory.max").write_text("400000\n")  # its own group, in the other
    assert machine._read_memory() == (400_000, 400_000)
    (tmp_path / "inside" / "memory.max").unlink()
    limit.write_text("max\n")
    assert machine._read_memory()[0] > 1_000_000


def test_a_private_key_open_to_others_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.key").write_text("x")
    (tmp_path / "a.key").chmod(0o640)
    monkeypatch.setenv("OVERPROOF_CONFIG_DIR", str(tmp_path))
    assert machine.look(tmp_path).open_keys == (tmp_path / "a.key",)


def test_requirements_are_read_from_the_metadata() -> None:
    found = {(row.name, row.extra) for row in machine._read_packages() or ()}
    assert ("typer", "") in found
    assert ("torch", "distill") in found


def test_the_json_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.dispatch(["doctor", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["demo_runs"] is (code == 0)
    assert all(row["state"] in {"ok", "warning", "missing"} for row in shown["checks"])
