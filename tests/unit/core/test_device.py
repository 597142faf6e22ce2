"""What a container leaves of the processors, and what is told to the C library."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from overproof.core import device
from overproof.core.errors import UsageError

V1 = "cpu.cfs_quota_us", "cpu.cfs_period_us"
MANY = 64


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of control groups, and a machine with many cores."""
    monkeypatch.setattr(device, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(device, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)), raising=False)
    return tmp_path


def write(groups: Path, own: str, files: dict[str, str]) -> int:
    (groups / "own").write_text(own)
    for name, text in files.items():
        path = groups / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return device.cores.__wrapped__()


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/\n", {"cpu.max": "20000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, MANY),
        ("0::/\n", {"cpu.max": "9900000 100000"}, MANY),
        ("0::/\n", {}, MANY),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        # A path of the host's, seen from inside: the container's own group is the root.
        ("0::/docker/1f\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/b\n", {"a/cpu.max": "400000 100000"}, MANY),
        ("4:cpu,cpuacct:/a\n", {f"cpu/a/{V1[0]}": "250000", f"cpu/a/{V1[1]}": "100000"}, 3),
        ("4:cpu,cpuacct:/\n", {f"cpu/{V1[0]}": "-1", f"cpu/{V1[1]}": "100000"}, MANY),
        ("4:cpuset:/\n0::/\n", {f"cpuset/{V1[0]}": "1", f"cpuset/{V1[1]}": "1"}, MANY),
    ],
)
def test_cores_are_those_that_the_container_may_use(
    groups: Path, own: str, files: dict[str, str], cores: int
) -> None:
    assert write(groups, own, files) == cores


def test_no_control_groups_no_limit(groups: Path) -> None:
    assert device.cores.__wrapped__() == MANY


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
@pytest.mark.parametrize("most", [device.OLD_KEEP_BYTES, device.KEEP_BYTES])
def test_the_largest_threshold_that_the_c_library_takes_is_set(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    kept: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        """As glibc before 2.35, which refuses a high threshold of mmap."""
        taken = parameter != device.M_MMAP_THRESHOLD or value <= most
        if taken:
            kept[parameter] = value
        return int(taken)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    device.prepare()
    assert kept == {
        device.M_TRIM_THRESHOLD: device.KEEP_BYTES,
        device.M_MMAP_THRESHOLD: most,
    }


def test_tiles_are_told_from_dot_products() -> None:
    dots = device.Processor("Zen", frozenset({"avx512_bf16"}))
    assert dots.bf16
    assert not dots.tiles
    assert device.Processor("Xeon", frozenset({"avx512_bf16", "amx_bf16"})).tiles


class Accelerators:
    """What `torch.accelerator` says of a machine."""

    def __init__(self, kind: str | None, available: bool = True) -> None:
        self.kind, self.available = kind, available

    def is_available(self) -> bool:
        return self.available and self.kind is not None

    def current_accelerator(self) -> SimpleNamespace:
        return SimpleNamespace(type=self.kind)


@pytest.mark.parametrize(
    ("found", "name", "collectives", "resource"),
    [
        (Accelerators(None), "cpu", "gloo", "CPU"),
        (Accelerators("cuda", available=False), "cpu", "gloo", "CPU"),
        (Accelerators("cuda"), "cuda", "nccl", "GPU"),
        (Accelerators("npu"), "npu", "hccl", "NPU"),
        (Accelerators("xpu"), "xpu", "xccl", "GPU"),
        (Accelerators("mps"), "mps", None, None),
        (Accelerators("mtia"), "cpu", "gloo", "CPU"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_the_device_is_the_one_that_torch_has(
    found: Accelerators, name: str, collectives: str | None, resource: str | None
) -> None:
    kind = device.kind_here(found)
    assert (kind.name, kind.collectives, kind.resource) == (name, collectives, resource)


@pytest.mark.parametrize(
    ("each", "chosen"),
    [
        (["cpu", "cpu"], "cpu"),
        (["cpu", "npu", "npu"], "npu"),
        (["cuda"], "cuda"),
        (["mps", "cpu"], "cpu"),
    ],
)
def test_a_cluster_runs_on_the_accelerator_that_some_of_it_have(
    each: list[str], chosen: str
) -> None:
    assert device.kind_of_many(each).name == chosen


def test_several_kinds_of_accelerators_are_refused() -> None:
    with pytest.raises(UsageError, match="several kinds") as caught:
        device.kind_of_many(["cuda", "npu", "cpu"])
    assert "got cuda, npu; wanted one" in caught.value.render()


@pytest.mark.parametrize(("cann", "autoload"), [(None, "0"), ("/usr/local/Ascend", "1")])
def test_torch_looks_for_ascend_only_where_cann_is_set_up(
    monkeypatch: pytest.MonkeyPatch, cann: str | None, autoload: str
) -> None:
    monkeypatch.setattr(os, "environ", {"ASCEND_TOOLKIT_HOME": cann} if cann else {})
    device.prepare()
    assert os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] == autoload


SOURCE = Path(device.__file__).parents[1]
# A device by name, alone or with a number, and what torch has under such a name.
NAMED = re.compile(r"""["'](?:cuda|npu|xpu|mps)(?::\d+)?["']|torch\.(?:cuda|npu|xpu|mps)\b|cuda""")


def test_devices_are_named_in_one_module_only() -> None:
    naming = [
        path.relative_to(SOURCE).as_posix()
        for path in sorted(SOURCE.rglob("*.py"))
        if NAMED.search(path.read_text(encoding="utf-8"))
    ]
    assert naming == ["core/device.py"]
