"""Checks in processes of their own, each with a time limit.

One process a core judges one answer after another. One that takes too long is ended, its answer
counts as wrong, and another process takes its place: a pattern that backtracks for ever costs its
time limit and nothing else.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from overproof.core.errors import StageError, UsageError
from overproof.teacher.checkers.base import Finding, final
from overproof.teacher.checkers.kinds import parse
from overproof.teacher.checkers.sandbox import end_all, leave_network

START_SECONDS = 60.0  # a process takes less than a second to start; a busy machine takes longer
CHUNK = 1 << 16


class Case(NamedTuple):
    """An answer, reasoning included, and the check that it must pass, as a record has it."""

    check: Mapping[str, Any]
    answer: str


def judge(
    cases: Iterable[Case], workers: int, advance: Callable[[int], None] = lambda _: None
) -> list[Finding]:
    """Judge answers, in their order.

    Args:
        workers: processes.
        advance: told of each answer that is judged.

    Raises:
        UsageError: a check that cannot be read, or whose package is not there.
        StageError: no process can be started, or programs cannot be kept from the network.
    """
    local = threading.local()
    started: list[_Process] = []
    lock = threading.Lock()

    def one(case: Case) -> Finding:
        if not hasattr(local, "process"):
            local.process = _Process()
            with lock:
                started.append(local.process)
        found: Finding = local.process.judge(case)
        with lock:
            advance(1)
        return found

    executor = ThreadPoolExecutor(max(1, workers))
    try:
        return list(executor.map(one, cases))
    finally:
        executor.shutdown(cancel_futures=True)
        for process in started:
            process.end()


class _Process:
    """One process that judges, started anew when it had to be ended."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None

    def judge(self, case: Case) -> Finding:
        answer = final(case.answer)
        limit = parse(case.check).most_seconds
        if answer is None:
            return Finding(False, "the reasoning does not end")
        line = json.dumps({"check": dict(case.check), "answer": answer}).encode() + b"\n"
        try:
            got = self._ask(line, limit)
        except TimeoutError:
            self.end()
            return Finding(False, f"its check took longer than {limit:g} s")
        if got is None:
            self.end()
            return Finding(False, "its check ended early")
        reply = json.loads(got)
        if "usage" in reply:
            raise UsageError(reply["usage"], hint=reply["hint"])
        if "stage" in reply:
            raise StageError(reply["stage"], hint=reply["hint"])
        return Finding(reply["passed"], reply["why"])

    def end(self) -> None:
        """End it."""
        if self._running is not None:
            end_all(self._running)
            self._running = None

    def _ask(self, line: bytes, seconds: float) -> bytes | None:
        """The reply to a line; None: the process is gone."""
        if self._running is None:
            self._running = _start()
            if self._read(START_SECONDS) is None:
                raise StageError("a process that checks answers could not be started")
        assert self._running.stdin
        try:
            self._running.stdin.write(line)
            self._running.stdin.flush()
        except BrokenPipeError:
            return None
        return self._read(seconds)

    def _read(self, seconds: float) -> bytes | None:
        """A line; raises `TimeoutError` when none comes in time."""
        assert self._running
        assert self._running.stdout
        end, got = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as ready:
            ready.register(self._running.stdout, selectors.EVENT_READ)
            while not got.endswith(b"\n"):
                if not ready.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError
                part = os.read(self._running.stdout.fileno(), CHUNK)
                if not part:
                    return None
                got += part
        return got


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - this very module
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def main() -> None:
    """Judge what comes, line after line; what a check prints goes nowhere."""
    replies = os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    leave_network()
    replies.write(b"{}\n")
    replies.flush()
    for line in sys.stdin.buffer:
        replies.write(json.dumps(_reply(json.loads(line))).encode() + b"\n")
        replies.flush()


def _reply(asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return parse(asked["check"]).check(asked["answer"])._asdict()
    except UsageError as error:
        return {"usage": error.what, "hint": error.hint}
    except StageError as error:
        return {"stage": error.what, "hint": error.hint}
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as e:
        # A scorer of another package met an answer that it was not written for.
        return Finding(False, f"its check failed: {type(e).__name__}")._asdict()


if __name__ == "__main__":
    main()
