"""Starting, watching and ending worker processes; Ctrl-C is the parent's to handle."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from overproof.core import workers
from overproof.core.errors import StageError, UsageError

PATIENCE = 60  # seconds until a child must have started


CTRL_C = """
import os, time
from overproof.core import workers

def work(results):
    results.put(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    try:
        for pid in workers.spread(work, [(), ()], 3, name="a worker", hint="none"):
            print(pid, flush=True)
    except KeyboardInterrupt:
        print("heard")
"""


def test_ctrl_c_reaches_the_parent_alone_which_ends_its_workers_in_silence(tmp_path: Path) -> None:
    """A terminal sends it to the whole group: to the server that forks workers as well."""
    script = tmp_path / "script.py"
    script.write_text(CTRL_C)
    env = {**os.environ, "PYTHONPATH": str(Path(workers.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, script],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        os.kill(pids[0], signal.SIGINT)
        time.sleep(0.2)
        assert not gone(pids[0])
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.communicate(timeout=PATIENCE) == ("heard\n", "")
    assert parent.returncode == 0
    assert all(gone(pid) for pid in pids)


def test_the_parent_goes_on_hearing_it() -> None:
    workers.start([])
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_ctrl_c_while_workers_start_ends_those_that_run() -> None:
    first, second = (workers.CONTEXT.Process(target=time.sleep, args=(60,)) for _ in range(2))
    second.start = lambda: os.kill(os.getpid(), signal.SIGINT)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        workers.start([first, second])
    assert first.exitcode == -signal.SIGTERM
    assert second.pid is None


def count(first: int, last: int, results: multiprocessing.Queue[int]) -> None:
    for number in range(first, last):
        results.put(number)


def one_counts_one_waits(role: str, pids: list[int], results: multiprocessing.Queue[int]) -> None:
    """`pids`: where each role writes its process number."""
    pids[role == "waits"] = os.getpid()
    if role == "waits":
        time.sleep(PATIENCE)
    results.put(1)
    if role == "dies":
        results.close()
        results.join_thread()
        os._exit(7)


def spread(*roles: str) -> tuple[Iterator[int], list[int]]:
    pids: Any = workers.CONTEXT.Array("q", 2)
    shares = [(role, pids) for role in roles]
    hint = "give it more memory"
    return workers.spread(one_counts_one_waits, shares, 2, name="a counter", hint=hint), pids


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "Z"  # whoever took the orphan has yet to reap it


def test_results_of_all_workers_are_collected() -> None:
    shares = [(0, 3), (3, 6)]
    assert sorted(workers.spread(count, shares, 6, name="a counter", hint="none")) == list(range(6))


def test_a_worker_that_dies_is_told_after_its_last_result() -> None:
    found, pids = spread("dies", "waits")
    assert next(found) == 1
    with pytest.raises(StageError, match="a counter ended early") as caught:
        next(found)
    assert "exit code 7" in caught.value.render()
    assert "give it more memory" in caught.value.render()
    assert not pids[1] or gone(pids[1])


def refuses(results: Any) -> None:
    raise UsageError("too long", details=["row 7"], hint="cut it")


def test_an_error_of_ours_reaches_the_parent_as_it_was_raised() -> None:
    with pytest.raises(UsageError, match="too long") as caught:
        list(workers.spread(refuses, [()], 1, name="a worker", hint="none"))
    assert (caught.value.details, caught.value.hint) == (("row 7",), "cut it")


class Unshareable:
    """A share that torch finds no room for when it is sent to a worker."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> NoReturn:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: Success (0)"),
        OSError(28, "No space left on device"),
    ],
)
def test_no_room_to_share_memory_is_told_with_its_remedy(error: Exception) -> None:
    shares = [(Unshareable(error),)]
    with pytest.raises(StageError, match="no room in /dev/shm") as caught:
        list(workers.spread(refuses, shares, 1, name="a worker", hint="none"))
    assert "--shm-size=2g" in (caught.value.hint or "")


def test_other_errors_of_sharing_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="quite another"), workers.sharing():
        raise RuntimeError("quite another")


def test_leaving_early_ends_the_workers() -> None:
    found, pids = spread("counts", "waits")
    assert next(found) == 1
    found.close()  # type: ignore[attr-defined]
    assert not pids[1] or gone(pids[1])


def orphan(pids: list[int]) -> None:
    """A parent that is killed while its worker works."""
    shares = [("counts", pids), ("waits", pids)]
    for _ in workers.spread(one_counts_one_waits, shares, 2, name="a counter", hint="none"):
        while not pids[1]:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_ends_with_its_parent() -> None:
    pids: Any = workers.CONTEXT.Array("q", 2)
    parent = workers.CONTEXT.Process(target=orphan, args=(pids,))
    parent.start()
    parent.join(PATIENCE)
    assert parent.exitcode == -signal.SIGKILL
    deadline = time.monotonic() + PATIENCE / 2
    while not gone(pids[1]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(pids[1])
