"""The resident memory of a process while it works, seen from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from overproof.core.workers import CONTEXT

LOOK_SECONDS = 0.02
MB = 1 << 20

Stage = Callable[[Path, int], None]


def watch(stage: Stage, folder: Path, records: int, limit_mb: int) -> dict[str, Any]:
    """Run a stage in a process of its own.

    Args:
        limit_mb: of its own memory; a process that takes more is ended.

    Returns:
        seconds of the processor, without the start; `own_mb`, its peak of memory that is neither
        a mapped file nor shared; `resident_mb`, the peak with these; `before_mb`, its own before
        the stage began; or `stopped_mb` where it was ended.
    """
    mine, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_run, args=(stage, folder, records, theirs), daemon=True)
    process.start()
    theirs.close()
    mine.recv()  # it has imported what it needs
    seen = psutil.Process(process.pid)
    before, _ = _memory(seen)
    own = resident = before
    mine.send(None)
    while not mine.poll(LOOK_SECONDS):
        now, whole = _memory(seen)
        own, resident = max(own, now), max(resident, whole)
        if own > limit_mb:
            process.kill()
            process.join()
            return {"stopped_mb": limit_mb, "before_mb": before}
    try:
        seconds = mine.recv()
    except EOFError as error:
        raise SystemExit(f"{stage.__name__} of {records:,} records ended early") from error
    process.join()
    return {
        "cpu_seconds": round(seconds, 2),
        "records_per_cpu_second": round(records / seconds),
        "before_mb": before,
        "own_mb": own,
        "resident_mb": resident,
    }


def _memory(process: psutil.Process) -> tuple[int, int]:
    """Own and whole resident memory, MB; of one that has just ended, none."""
    try:
        found = process.memory_info()
    except psutil.NoSuchProcess:
        return 0, 0
    return (found.rss - getattr(found, "shared", 0)) // MB, found.rss // MB


def _run(stage: Stage, folder: Path, records: int, pipe: Connection) -> None:
    pipe.send(None)
    pipe.recv()
    began = time.process_time()
    stage(folder, records)
    pipe.send(time.process_time() - began)
