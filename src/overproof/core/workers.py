"""Starting worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from multiprocessing.process import BaseProcess


def start(processes: Iterable[BaseProcess]) -> None:
    """Start workers that Ctrl-C does not reach.

    A terminal sends it to the whole group. The parent ends its workers and says so in one line;
    each worker would print a traceback of its own. A child inherits the set of blocked signals,
    and one that reaches the parent meanwhile is delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for process in processes:
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
