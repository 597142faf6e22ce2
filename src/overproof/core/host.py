"""The machine and the versions that made a number, as a stage keeps them beside it."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from overproof.core import device

PACKAGES = ("torch", "transformers", "xllamacpp")
UNKNOWN = "unknown"
SYSCTL = Path("/usr/sbin/sysctl")
SYSCTL_SECONDS = 5  # it answers at once, or something is wrong
Machine = dict[str, str | int | float]


def machine() -> Machine:
    """The machine and the versions that run this process: label to value."""
    found: Machine = {
        "processor": processor(),
        "cores": device.cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@cache
def processor() -> str:
    """The processor's name; where the kernel's list of processors has none, what others say.

    macOS has no such list, and that of most ARM kernels gives numbers in place of a name.
    """
    found = device.processor().model
    if found != UNKNOWN:
        return found
    return (_brand() if sys.platform == "darwin" else "") or platform.processor() or UNKNOWN


def _brand() -> str:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(  # noqa: S603 - a program of the system, with a fixed argument
            [SYSCTL, "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            timeout=SYSCTL_SECONDS,
            check=True,
        ).stdout.strip()
    return ""
