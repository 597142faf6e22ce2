"""Checks in processes of their own, each with a time limit.

One process a core judges one answer after another. One that computes for too long is ended by its
own alarm, its answer counts as wrong, and another process takes its place: a pattern that
backtracks for ever costs its time limit and nothing else, also when nobody is left to wait for it.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

from overproof.core.errors import OverproofError, StageError, UsageError
from overproof.teacher.checkers.base import SECONDS, Checker, Finding, final
from overproof.teacher.checkers.kinds import parse
from overproof.teacher.checkers.sandbox import end_all, enter

PATIENCE_SECONDS = 120.0  # by the clock, beyond what a check may compute: starting, a busy machine
CHUNK = 1 << 16
TRIES = 2
KEPT = ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH", "HOME")  # of the environment


class Case(NamedTuple):
    """An answer, reasoning included, and the check that it must pass, as a record has it.

    Attributes:
        answer: None: it was cut off, and is wrong.
        thinking: the prompt has begun the reasoning, see `final`.
    """

    check: Mapping[str, Any]
    answer: str | None
    thinking: bool = False


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
    lock = threading.Lock()

    def one(case: Case) -> Finding:
        answer = None if case.answer is None else final(case.answer, thinking=case.thinking)
        if case.answer is None:
            found = Finding(False, "cut off at the longest length")
        elif answer is None:
            found = Finding(False, "the reasoning does not end")
        else:
            found = pool.mine().judge(case.check, answer)
        with lock:
            advance(1)
        return found

    with _pool() as pool, ThreadPoolExecutor(max(1, workers)) as executor:
        try:
            return list(executor.map(one, cases))
        finally:
            pool.stop()  # what is under way would be waited for
            executor.shutdown(cancel_futures=True)


def demand(checkers: Iterable[Checker]) -> None:
    """Refuse checks that cannot work here, before anything is drawn.

    Raises:
        UsageError, StageError: see `judge`.
    """
    kinds = {(type(one), getattr(one, "task", "")): one for one in checkers}
    if not kinds:
        return
    with _pool() as pool:
        for one in kinds.values():
            pool.mine().judge(one.model_dump(mode="json", by_alias=True), None)


@contextmanager
def _pool() -> Iterator[_Pool]:
    """A pool that leaves neither processes nor files."""
    pool = _Pool()
    try:
        yield pool
    finally:
        pool.stop()
        shutil.rmtree(pool.folder, ignore_errors=True)


class _Pool:
    """The processes of one call, one a thread.

    Attributes:
        folder: where they and what they run put files.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="overproof-check-")
        self.stopped = threading.Event()
        self._local, self._lock = threading.local(), threading.Lock()
        self._started: list[_Process] = []

    def mine(self) -> _Process:
        """That of this thread."""
        if not hasattr(self._local, "process"):
            self._local.process = _Process(self)
            with self._lock:
                self._started.append(self._local.process)
        found: _Process = self._local.process
        return found

    def stop(self) -> None:
        """End all; none is started any more."""
        self.stopped.set()
        with self._lock:
            for process in self._started:
                process.end()


class _Process:
    """One process that judges, started anew when it is gone."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool
        self._running: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def judge(self, check: Mapping[str, Any], answer: str | None) -> Finding:
        """Judge an answer; of None, only whether the check can work."""
        limit = parse(check).most_seconds
        for _ in range(TRIES):
            if self._pool.stopped.is_set():
                break
            word = secrets.token_hex(8)
            asked = {"id": word, "check": dict(check), "answer": answer}
            try:
                got = self._ask(json.dumps(asked).encode() + b"\n", limit)
            except TimeoutError:
                self.end()
                return Finding(False, "its check did not end")
            reply = _object(got)
            if reply.pop("id", None) == word:
                return _found(reply)
            if self.end() == -signal.SIGPROF:
                return Finding(False, f"its check took longer than {SECONDS:g} s of computing")
        return Finding(False, "its check ended early")

    def end(self) -> int | None:
        """End it; returns how it ended."""
        with self._lock:
            process, self._running = self._running, None
        if process is None:
            return None
        gone = process.poll()
        if gone is None:
            try:  # it may be on its way out
                gone = process.wait(0.2)
            except subprocess.TimeoutExpired:
                gone = None
        end_all(process)
        return gone

    def _ask(self, line: bytes, seconds: float) -> bytes | None:
        """The reply to a line; None: the process is gone."""
        process = self._running or self._start()
        assert process.stdin
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return None
        return self._read(process, seconds + PATIENCE_SECONDS)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._pool.stopped.is_set():
                raise StageError("checking was stopped")
            env = {name: os.environ[name] for name in KEPT if name in os.environ}
            process = subprocess.Popen(  # noqa: S603 - this very module
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**env, "TMPDIR": self._pool.folder, "PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
            self._running = process
        try:
            ready = self._read(process, PATIENCE_SECONDS)
        except TimeoutError:
            ready = None
        if ready is None:
            self.end()
            raise StageError("a process that checks answers could not be started")
        return process

    def _read(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
        """A line; None: there will be none; raises `TimeoutError` when none comes in time."""
        end, got = time.monotonic() + seconds, b""
        stream = process.stdout
        try:
            assert stream
            with selectors.DefaultSelector() as ready:
                ready.register(stream, selectors.EVENT_READ)
                while not got.endswith(b"\n"):
                    if not ready.select(max(0.0, end - time.monotonic())):
                        raise TimeoutError
                    part = os.read(stream.fileno(), CHUNK)
                    if not part:
                        return None
                    got += part
        except ValueError:  # closed by another thread that ends all
            return None
        return got


def _object(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:  # more than one line: somebody else wrote, too
        return {}
    return found if isinstance(found, dict) else {}


def _found(reply: Mapping[str, Any]) -> Finding:
    if "error" in reply:
        kind = UsageError if reply["usage"] else StageError
        raise kind(reply["error"], hint=reply["hint"])
    return Finding(reply["passed"], reply["why"])


def main() -> None:
    """Judge what comes, line after line; what a check prints goes nowhere."""
    replies = os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    enter()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends the process, also inside C code
    replies.write(b"{}\n")
    replies.flush()
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        replies.write(json.dumps({"id": asked["id"], **_reply(asked)}).encode() + b"\n")
        replies.flush()


def _reply(asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        checker = parse(asked["check"])
        checker.prepare()
        if asked["answer"] is None:
            return Finding(True)._asdict()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            return checker.check(asked["answer"])._asdict()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
    except OverproofError as error:
        usage = isinstance(error, UsageError)
        return {"error": error.what, "usage": usage, "hint": error.hint}
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": f"a check could not be made: {error}", "usage": False, "hint": None}
    except Exception as error:
        return Finding(False, f"its check failed: {type(error).__name__}")._asdict()


if __name__ == "__main__":
    main()
