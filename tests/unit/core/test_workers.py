"""Starting, watching and ending worker processes; Ctrl-C is the parent's to handle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from overproof.core import workers
from overproof.core.errors import StageError

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


def count(first: int, last: int, results: multiprocessing.Queue[int]) -> None:
    for number in range(first, last):
        results.put(number)


def die(results: multiprocessing.Queue[int]) -> None:
    results.put(1)
    results.close()
    results.join_thread()
    os._exit(7)


def test_results_of_all_workers_are_collected() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=count, args=(first, first + 3, results)) for first in (0, 3)
    ]
    found = list(workers.collect(processes, results, 6, name="a counter", hint="none"))
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    assert [process.exitcode for process in processes] == [0, 0]


def test_a_worker_that_dies_is_told_after_its_last_result() -> None:
    context = multiprocessing.get_context("spawn")
    results, ready = context.Queue(), context.Event()
    waiting = context.Process(target=work, args=(ready,))
    dying = context.Process(target=die, args=(results,))
    found = workers.collect(
        [dying, waiting], results, 2, name="a counter", hint="give it more memory"
    )
    assert next(found) == 1
    with pytest.raises(StageError, match="a counter ended early") as caught:
        next(found)
    assert "exit code 7" in caught.value.render()
    assert "give it more memory" in caught.value.render()
    assert waiting.exitcode == -signal.SIGTERM


def test_leaving_early_ends_the_workers() -> None:
    context = multiprocessing.get_context("spawn")
    results, ready = context.Queue(), context.Event()
    processes = [
        context.Process(target=count, args=(0, 1, results)),
        context.Process(target=work, args=(ready,)),
    ]
    found = workers.collect(processes, results, 2, name="a counter", hint="none")
    assert next(found) == 0
    found.close()
    assert processes[1].exitcode == -signal.SIGTERM
