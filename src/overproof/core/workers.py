"""Worker processes: one a core, started together, watched, and ended together."""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from overproof.core.errors import OverproofError, StageError

POLL_SECONDS = 1.0
# A fork of a process with OpenMP threads can hang; one of a server that has loaded what takes
# seconds to load, and computed nothing, cannot. Apple's own libraries do not survive a fork.
CONTEXT = mp.get_context("forkserver") if sys.platform == "linux" else mp.get_context("spawn")
CONTEXT.set_forkserver_preload(["torch", "transformers.modeling_utils"])
# What torch and multiprocessing say where /dev/shm, 64 MB in a container, holds no more.
SHARED_FULL = ("unable to allocate shared memory", "No space left on device")
SHARED_REMEDY = "docker run --shm-size=2g; without a container, as root: " + (
    "mount -o remount,size=2g /dev/shm"
)


@contextmanager
def sharing() -> Iterator[None]:
    """Around what moves memory to where worker processes see it.

    Raises:
        StageError: there is no room for it.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if not any(text in str(error) for text in SHARED_FULL):
            raise
        raise StageError(
            "no room in /dev/shm for the memory that worker processes share",
            details=str(error).splitlines()[:1],
            hint=f"{SHARED_REMEDY}; `overproof doctor` says how much the demo needs",
        ) from error


def start(processes: Sequence[BaseProcess]) -> None:
    """Start workers that Ctrl-C does not reach; all of them or none.

    A terminal sends it to the whole group. The parent ends its workers and says so in one line;
    each worker would print a traceback of its own. A child inherits the set of blocked signals,
    and one that reaches the parent meanwhile is delivered once they are started.
    """
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with _sigterm_later():
                for process in processes:
                    process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except BaseException:
        # Left alone, they would find the queues of their parent gone and complain of it.
        _end(processes)
        raise


@contextmanager
def _sigterm_later() -> Iterator[None]:
    """Hold SIGTERM back. To block it is no way: children inherit that, and are ended by it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if came:
        signal.raise_signal(signal.SIGTERM)


def spread(
    work: Callable[..., None],
    shares: Sequence[tuple[Any, ...]],
    count: int,
    *,
    name: str,
    hint: str,
) -> Iterator[Any]:
    """Run one worker for each share, yield what they put into their queue, and end them.

    A worker whose parent is gone ends at once: nobody waits for what it does.

    Args:
        work: a function of a module; it gets a share's values and then the queue.
        count: results that they put together.
        name: what a worker is called, such as "a training worker".
        hint: what to do when one dies.

    Raises:
        StageError: a worker died before the last result, or no memory is left to share.
        OverproofError: what a worker raised of this kind, as it raised it.
    """
    results: Any = CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=_watched, args=(work, *share, results), daemon=True)
        for share in shares
    ]
    with sharing():
        start(processes)
    try:
        for _ in range(count):
            yield _next(processes, results, name, hint)
        for process in processes:
            process.join()
        _require_alive(processes, name, hint)
    finally:
        _end(processes)


def _watched(work: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(*arguments)
    except OverproofError as error:
        arguments[-1].put(_Raised(error))


@dataclass(frozen=True)
class _Raised:
    """An error on its way through the queue of results."""

    error: OverproofError


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _next(processes: Sequence[BaseProcess], results: Any, name: str, hint: str) -> Any:
    while True:
        try:
            found = results.get(timeout=POLL_SECONDS)
        except queue.Empty:
            _require_alive(processes, name, hint)
            continue
        if isinstance(found, _Raised):
            raise found.error
        return found


def _require_alive(processes: Sequence[BaseProcess], name: str, hint: str) -> None:
    dead = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
    if dead:
        raise StageError(
            f"{name} ended early",
            details=[f"exit code {dead[0]}; -9 usually means that memory ran out, -7 /dev/shm"],
            hint=hint,
        )


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.pid is not None:
            process.terminate()
            process.join()
