"""Starting worker processes."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess


def start(processes: Sequence[BaseProcess]) -> None:
    """Start workers that Ctrl-C does not reach; all of them or none.

    A terminal sends it to the whole group. The parent ends its workers and says so in one line;
    each worker would print a traceback of its own. A child inherits the set of blocked signals,
    and one that reaches the parent meanwhile is delivered once they are started.
    """
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for process in processes:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except BaseException:
        # Left alone, they would find the queues of their parent gone and complain of it.
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
        raise
