"""What a process gives up before it runs what a model wrote: the network, and more than it needs.

Linux only: a network namespace of its own, which any user may make where user namespaces are
allowed (user_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from overproof.core.errors import StageError

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
FILE_BYTES = 16 << 20  # of a file that a program writes
FILES = 64  # open at once

_left = False  # whether this process is where there is no network


def leave_network() -> None:
    """Put this process, and all that it starts, where there is no network, if the system can.

    There is no way back: only a process that does nothing else may call it.
    """
    global _left
    with suppress(OSError, AttributeError):  # no Linux
        unshare = ctypes.CDLL(None).unshare
        _left = any(unshare(flags) == 0 for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET))


def demand_no_network() -> None:
    """Refuse to run a program where there is a network.

    Raises:
        StageError: this process is not where there is none.
    """
    if not _left:
        raise StageError(
            "programs that a model wrote are run without the network, and this system does not "
            "let a process leave it",
            hint="use Linux with user namespaces (sysctl kernel.unprivileged_userns_clone=1), or "
            "in a container: docker run --cap-add SYS_ADMIN",
        )


@dataclass(frozen=True)
class Limits:
    """Of one run.

    Attributes:
        seconds: by the clock, and of computing. memory_bytes: address space.
    """

    seconds: float
    memory_bytes: int

    def apply(self) -> None:
        """Take them on; for the process that is about to run the program."""
        computing = int(self.seconds) + 1
        for kind, most in (
            (resource.RLIMIT_CPU, computing),
            (resource.RLIMIT_AS, self.memory_bytes),
            (resource.RLIMIT_FSIZE, FILE_BYTES),
            (resource.RLIMIT_NOFILE, FILES),
            (resource.RLIMIT_CORE, 0),
        ):
            _, hard = resource.getrlimit(kind)
            allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (allowed, allowed))
        # Whoever checks may be ended in the middle of it; the program ends with it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started in its session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
