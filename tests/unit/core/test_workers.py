"""Ctrl-C is the parent's to handle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from overproof.core import workers

PATIENCE = 60  # seconds until a child must have started


def work(ready: multiprocessing.synchronize.Event) -> None:
    ready.set()
    time.sleep(PATIENCE)


def test_a_worker_outlives_ctrl_c_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=work, args=(ready,), daemon=True)
    workers.start([worker])
    try:
        assert ready.wait(PATIENCE)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.2)
        assert worker.is_alive()
    finally:
        worker.terminate()
        worker.join(PATIENCE)
    assert worker.exitcode == -signal.SIGTERM
    assert capfd.readouterr().err == ""


def test_the_parent_goes_on_hearing_it() -> None:
    workers.start([])
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_ctrl_c_while_workers_start_ends_those_that_run(capfd: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    first = context.Process(target=work, args=(ready,), daemon=True)
    second = context.Process(target=work, args=(ready,), daemon=True)
    second.start = lambda: os.kill(os.getpid(), signal.SIGINT)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        workers.start([first, second])
    assert first.exitcode == -signal.SIGTERM
    assert second.pid is None
    assert capfd.readouterr().err == ""
