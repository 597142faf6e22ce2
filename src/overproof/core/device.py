"""What this machine's processor offers to torch, and how to keep torch from wasting it.

Import this module before torch: OpenMP and glibc read their settings once. It is also the one
place that knows kinds of accelerators by name; all else asks `kind_here`.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from overproof.core.errors import UsageError

# mallopt parameters, glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 1 << 30  # temporaries up to this size are kept for reuse, not given back
OLD_KEEP_BYTES = 32 << 20  # the most that glibc before 2.35 takes: HEAP_MAX_SIZE / 2
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
CANN = "ASCEND_TOOLKIT_HOME"


def prepare() -> None:
    """Set what must be set before torch is imported; safe to call twice.

    A waiting OpenMP thread spins by default: on two shared cores that costs up to 12 times
    (docs/log.md). glibc gives large blocks back at once, and the page faults of taking them
    again cost more than the arithmetic on them; here blocks up to `KEEP_BYTES` are kept, up to
    `OLD_KEEP_BYTES` where glibc refuses that.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # our own bars say what our stages do
    # With torch-npu installed and no CANN, importing torch fails unless this is off; with CANN,
    # whose set_env.sh names its place, torch finds the device only if it is on.
    autoload = "1" if CANN in os.environ else "0"
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", autoload)
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (OSError, AttributeError):  # another C library: its defaults stay
            return
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
        # The call above ended glibc's own raising of this threshold: a refusal would leave 128 kB.
        if not mallopt(M_MMAP_THRESHOLD, KEEP_BYTES):
            mallopt(M_MMAP_THRESHOLD, OLD_KEEP_BYTES)


def release_memory() -> None:
    """Give freed memory back to the system: what `prepare` keeps for reuse, for others to use."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@cache
def cores() -> int:
    """Processors that this process may run on, or the quota of its container if that is less."""
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    else:
        found = os.cpu_count() or 1
    # Both versions of control groups: microseconds of running in each period of microseconds.
    limits = cgroup_limits("cpu", "cpu.max")
    for limit in limits + cgroup_limits("cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us"):
        match [int(word) for word in limit if word.isdigit()]:  # "max" and -1 are no limit
            case [quota, period] if quota and period:
                found = min(found, math.ceil(quota / period))
    return found


def cgroup_limits(controller: str, *names: str) -> list[list[str]]:
    """The words in the files of these names, of this process's control group and those around it.

    A container may see its own group as the root, under a path that leads nowhere inside.

    Args:
        controller: such as `cpu`; it has a tree of its own in version 1.
        names: files that are read together; a group that lacks one is left out.
    """
    groups: list[Path] = []
    for line in (_read(OWN_CGROUPS) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root, own = CGROUPS / controller if controllers else CGROUPS, PurePosixPath(path[1:])
        groups += [root / own, *(root / parent for parent in own.parents)]
    found = [[_read(group / name) for name in names] for group in groups]
    return [" ".join(filter(None, texts)).split() for texts in found if None not in texts]


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


@dataclass(frozen=True)
class Kind:
    """A kind of device that models can run on.

    Attributes:
        name: torch's; ROCm's devices bear the name of CUDA's.
        collectives: the backend of torch.distributed between such devices; None: there is none,
            and several processes meet on the processor.
        resource: what Ray counts them as; None: it does not.
    """

    name: str
    collectives: str | None
    resource: str | None


PROCESSOR = Kind("cpu", "gloo", "CPU")
KINDS = {
    kind.name: kind
    for kind in (
        PROCESSOR,
        Kind("cuda", "nccl", "GPU"),
        Kind("npu", "hccl", "NPU"),
        Kind("xpu", "xccl", "GPU"),
        Kind("mps", None, None),
    )
}


class Accelerators(Protocol):
    """What is asked of `torch.accelerator`; passed in, for `core` runs without torch."""

    def is_available(self) -> bool:
        """Whether a device is there that this build of torch can use."""

    def current_accelerator(self) -> Any:
        """A `torch.device` of the one kind that this build knows; None: it knows none."""


def kind_here(found: Accelerators) -> Kind:
    """The accelerator of this machine, or its processor.

    Args:
        found: `torch.accelerator`.
    """
    if not found.is_available():
        return PROCESSOR
    # A kind that is not listed may lack what we need of it; the processor has it.
    return KINDS.get(found.current_accelerator().type, PROCESSOR)


def kind_of_many(names: Iterable[str]) -> Kind:
    """What several machines together run on: the accelerator that some have, or processors.

    A head of a cluster often has none; so machines without one do not count where others have.

    Args:
        names: of the kind that each machine has.

    Raises:
        UsageError: they have several kinds of accelerators, whose numbers differ.
    """
    kinds = {KINDS[name] for name in names}
    usable = sorted(k.name for k in kinds if k != PROCESSOR and k.collectives and k.resource)
    if len(usable) > 1:
        raise UsageError(
            "the machines have accelerators of several kinds",
            details=[f"got {', '.join(usable)}; wanted one"],
            hint="start Ray on machines of one kind only",
        )
    return KINDS[usable[0]] if usable else PROCESSOR


@dataclass(frozen=True)
class Processor:
    """The processor, as far as it matters here.

    Attributes:
        model: its name.
        flags: instruction sets as the kernel names them.
    """

    model: str
    flags: frozenset[str]

    @property
    def bf16(self) -> bool:
        """Whether bf16 matrix products are faster than fp32 ones."""
        return bool(self.flags & {"amx_bf16", "avx512_bf16", "bf16", "sve_bf16"})

    @property
    def tiles(self) -> bool:
        """Whether it multiplies tiles of bf16 (AMX): 1.2 TFLOP/s a core, not 0.47 (docs/log.md)."""
        return "amx_bf16" in self.flags


@cache
def processor() -> Processor:
    """Read the processor's name and flags from the kernel; unknown elsewhere than on Linux."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return Processor("unknown", frozenset())
    fields: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    flags = fields.get("flags") or fields.get("features") or ""
    return Processor(fields.get("model name", "unknown"), frozenset(flags.split()))
