"""Decode and prefill speed, peak memory and size of GGUF files in the same engine."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overproof.core import device
from overproof.core.console import meter
from overproof.core.errors import StageError
from overproof.release.engine import Engine, version
from overproof.release.header import read_header

ROUNDS = 3  # of each file; the median is reported
PREFILL_TOKENS = 256  # about a conversation of the demo
DECODE_TOKENS = 64  # about an answer of the demo
WARM_TOKENS = 4  # decoded before the clock counts: page faults of the first pass
TRIAL_TOKENS = 16  # read and written to choose the number of threads
CONTEXT = 512  # tokens; bounds the cache of keys and values, which memory includes
TRIAL_SECONDS = 20  # a number of threads that takes longer is no choice: the machine is busy
RUN_SECONDS = 300  # a run that takes longer is given up
STATUS = Path("/proc/self/status")  # of Linux; some sandboxes leave the line VmHWM out
STRIDE = 7919  # a prime: prompts walk through the vocabulary without repeating


@dataclass(frozen=True)
class Speed:
    """What one file costs to run on this machine.

    Attributes:
        decode_tokens_per_second: writing, batch of one; median.
        decode_runs: every run, in the order measured.
        prefill_tokens_per_second: reading `PREFILL_TOKENS`; median.
        peak_bytes: growth of the process's resident memory, at its peak, by loading and running
            the file; median. Pages of the mapped file count.
        file_bytes: size of the file.
        threads: the number that decoded fastest in a trial; see `choose_threads`.
        engine: name and version.
    """

    decode_tokens_per_second: float
    decode_runs: tuple[float, ...]
    prefill_tokens_per_second: float
    peak_bytes: int
    file_bytes: int
    threads: int
    engine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As the report keeps it."""
        return {**asdict(self), "decode_runs": list(self.decode_runs)}


@dataclass(frozen=True)
class Run:
    """One run in a process of its own."""

    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    peak_bytes: int


def measure(files: Mapping[str, Path], *, rounds: int = ROUNDS) -> dict[str, Speed]:
    """Measure files in turn, so that a change of the machine's load meets them alike.

    1. For each file, try several numbers of threads; keep what decodes fastest.
    2. Each round runs each file once: A B A B ...
    3. Each run is a process of its own: memory is not shared with an earlier one.

    Args:
        files: GGUF files by name.

    Raises:
        StageError: a file is missing, or the engine cannot run it.
    """
    for path in files.values():
        if not path.is_file():
            raise StageError(f"no GGUF file at {path}")
    found: dict[str, list[Run]] = {name: [] for name in files}
    with meter("speed", (rounds + 1) * len(files), "runs") as bar:
        # 1.
        threads = {}
        for name, path in files.items():
            threads[name] = choose_threads(path)
            bar.advance(1)
        # 2.
        for _ in range(rounds):
            for name, path in files.items():
                # 3.
                found[name].append(run(path, threads[name]))
                bar.advance(1)
    return {name: _summary(path, threads[name], found[name]) for name, path in files.items()}


def choose_threads(path: Path) -> int:
    """The number of threads that decodes fastest now.

    Which it is depends on the machine's other work, as threads that share a core wait for each
    other hundreds of times a token, and on the model: a large one may need many to end in time.

    1. Try 1, 2, 4, ... threads, at last one for each core.
    2. Stop once more threads are slower than the fastest so far, or end too late after it.

    Raises:
        TooSlowError: no trial ended in time.
        StageError: the engine cannot run the file.
    """
    tried: dict[int, float] = {}
    # 1.
    numbers = [*(1 << power for power in range((device.cores() - 1).bit_length())), device.cores()]
    for threads in numbers:
        best = max(tried.values(), default=0.0)
        with suppress(TooSlowError):
            tried[threads] = run(path, threads, trial=True).decode_tokens_per_second
        # 2.
        if tried and tried.get(threads, 0.0) < best:
            break
    if not tried:
        raise TooSlowError(
            f"{path} was not measured within {TRIAL_SECONDS} s by any number of threads",
            details=[f"threads tried: {', '.join(map(str, numbers))}"],
            hint="is the machine busy? else choose a smaller teacher",
        )
    return max(tried, key=lambda threads: tried[threads])


def _summary(path: Path, threads: int, runs: Sequence[Run]) -> Speed:
    decode = tuple(round(run.decode_tokens_per_second, 2) for run in runs)
    prefill = statistics.median(run.prefill_tokens_per_second for run in runs)
    return Speed(
        decode_tokens_per_second=round(statistics.median(decode), 2),
        decode_runs=decode,
        prefill_tokens_per_second=round(prefill, 2),
        peak_bytes=int(statistics.median(run.peak_bytes for run in runs)),
        file_bytes=path.stat().st_size,
        threads=threads,
        engine=version(),
    )


class TooSlowError(StageError):
    """A run was given up."""


def run(path: Path, threads: int, *, trial: bool = False) -> Run:
    """Measure one file once, in a fresh process; `trial` measures shortly.

    Raises:
        StageError: the process fails, or takes longer than `RUN_SECONDS` (`TRIAL_SECONDS`).
    """
    environment = dict(os.environ)
    # Threads that sleep while they wait make decoding three times slower (engine.py).
    environment.pop("OMP_WAIT_POLICY", None)
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    read, write = (TRIAL_TOKENS,) * 2 if trial else (PREFILL_TOKENS, DECODE_TOKENS)
    # The header is read here: in the child its tokens would count as memory.
    vocabulary = len(read_header(path).tokens)
    arguments = [str(value) for value in (path, threads, vocabulary, read, write)]
    limit = TRIAL_SECONDS if trial else RUN_SECONDS
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", "overproof.release.speed", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as error:
        raise TooSlowError(
            f"{path} was not measured within {limit} s",
            details=[f"threads: {threads}"],
            hint="is the machine busy?",
        ) from error
    try:
        return Run(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise StageError(
            f"{path} could not be measured",
            details=[f"exit code {done.returncode}", *done.stderr.splitlines()[-5:]],
        ) from error


def run_here(path: Path, threads: int, vocabulary: int, read: int, write: int) -> Run:
    """Measure one file in this process; memory is right only in a fresh one.

    Args:
        vocabulary: number of the file's tokens.
        read: prompt's length, tokens.
        write: tokens to decode.

    Raises:
        StageError: the engine cannot run the file.
    """
    prompt = [(place * STRIDE) % vocabulary for place in range(1, read + 1)]
    version()  # imports the engine, whose own memory does not count
    before = resident_bytes()
    with Engine(path, context=CONTEXT, threads=threads) as engine:
        # The warm-up begins with another token than the prompt: nothing of it is cached.
        engine.generate([0], max_tokens=WARM_TOKENS, stop=False)
        answer = engine.generate(prompt, max_tokens=write, stop=False)
        peak = peak_resident_bytes()  # at least what is resident while the file is loaded
    return Run(
        answer.decode_tokens_per_second, answer.prefill_tokens_per_second, max(0, peak - before)
    )


def resident_bytes() -> int:
    """Resident memory of this process now, bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far, bytes."""
    if STATUS.is_file():
        # getrusage would include the parent's memory at the fork.
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import psutil

    windows = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if windows is not None:
        return int(windows)
    import resource

    most = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere (getrusage(2))
    return max(most * unit, resident_bytes())


if __name__ == "__main__":
    try:
        measured = run_here(Path(sys.argv[1]), *map(int, sys.argv[2:]))
        print(json.dumps(asdict(measured)))
    except StageError as failure:
        print(failure.render(), file=sys.stderr)
        sys.exit(failure.exit_code)
