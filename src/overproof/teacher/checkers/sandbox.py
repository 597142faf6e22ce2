"""What a process gives up before it runs what a model wrote: the network, and more than it needs.

Linux only: user and network namespaces of its own, which any user may make where the system
allows it (user_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from overproof.core.errors import StageError

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4  # linux/prctl.h
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
FILE_BYTES = 16 << 20  # of a file that a program writes
FILES = 64  # open at once

_left = False  # whether this process is where there is no network


def enter() -> None:
    """Put this process, and all that it starts, where there is no network, if the system can.

    1. A user namespace first: root would keep the power to go back (setns(2)).
    2. What it starts and leaves behind comes back to it, to be ended.
    3. Its memory, environment and files are not to be read through /proc.

    There is no way back: only a process that does nothing else may call it.
    """
    global _left
    with suppress(OSError, AttributeError):  # no Linux
        libc = ctypes.CDLL(None)
        _left = libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def demand_no_network() -> None:
    """Refuse to run what a model wrote where there is a network.

    Raises:
        StageError: this process is not where there is none.
    """
    if not _left:
        raise StageError(
            "programs that a model wrote are run without the network, and this system does not "
            "let a process leave it",
            hint="use Linux with user namespaces: sysctl kernel.unprivileged_userns_clone=1, on "
            "Ubuntu kernel.apparmor_restrict_unprivileged_userns=0, in a container "
            "docker run --security-opt seccomp=unconfined",
        )


@dataclass(frozen=True)
class Limits:
    """Of one run.

    Attributes:
        seconds: of computing, rounded up. memory_bytes: address space of each process.
    """

    seconds: float
    memory_bytes: int

    @property
    def patience(self) -> float:
        """Seconds by the clock after which a program that does not compute is ended."""
        return 10 * self.seconds + 10

    def apply(self) -> None:
        """Take them on; for the process that is about to run the program."""
        computing = math.ceil(self.seconds)
        for kind, most in (
            (resource.RLIMIT_CPU, computing),
            (resource.RLIMIT_AS, self.memory_bytes),
            (resource.RLIMIT_FSIZE, FILE_BYTES),
            (resource.RLIMIT_NOFILE, FILES),
            (resource.RLIMIT_CORE, 0),
        ):
            _, hard = resource.getrlimit(kind)
            allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
            # At the soft limit of computing a process is told, at the hard one it is gone.
            resource.setrlimit(kind, (allowed, max(allowed, 1)))
        libc = ctypes.CDLL(None)
        # Whoever checks may be ended in the middle of it; the program ends with it.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()


def end_orphans() -> None:
    """End all that this process has started, and what those started and left behind."""
    import psutil

    while children := psutil.Process().children(recursive=True):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
