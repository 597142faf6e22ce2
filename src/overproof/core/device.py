"""What this machine's processor offers to torch, and how to keep torch from wasting it.

Import this module before torch: OpenMP and glibc read their settings once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# mallopt parameters, glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 1 << 30  # temporaries up to this size are kept for reuse, not given back


def prepare() -> None:
    """Set what must be set before torch is imported; safe to call twice.

    A waiting OpenMP thread spins by default: on two shared cores that costs up to 12 times
    (docs/log.md). glibc gives large blocks back at once, and the page faults of taking them
    again cost more than the arithmetic on them. Each tensor that worker processes share is an open
    file, and five models have over a thousand: more than the usual limit, less than it may be.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # our own bars say what our stages do
    # With torch-npu installed and no CANN, importing torch fails unless this is off.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # where the hard limit is no number of files
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (OSError, AttributeError):  # another C library: its defaults stay
            return
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)


def release_memory() -> None:
    """Give freed memory back to the system: what `prepare` keeps for reuse, for others to use."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@cache
def cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
