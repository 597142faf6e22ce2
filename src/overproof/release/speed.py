"""Decode and prefill speed, peak memory and size of GGUF files in the same engine."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overproof.core import device
from overproof.core.console import meter
from overproof.core.errors import StageError
from overproof.release.engine import Engine, read_header, version

ROUNDS = 3  # of each file and setting; the median is reported
PREFILL_TOKENS = 256  # about a conversation of the demo
DECODE_TOKENS = 64  # about an answer of the demo
WARM_TOKENS = 8  # decoded before the clock counts: page faults of the first pass
CONTEXT = 512  # tokens; bounds the cache of keys and values, which memory includes
CHILD_SECONDS = 300  # a child that takes longer is given up
STRIDE = 7919  # a prime: prompts walk through the vocabulary without repeating


@dataclass(frozen=True)
class Speed:
    """What one file costs to run on this machine.

    Attributes:
        decode_tokens_per_second: writing, batch of one; median.
        decode_runs: every run of the chosen setting, in the order measured.
        prefill_tokens_per_second: reading `PREFILL_TOKENS`; median.
        peak_bytes: growth of the process's peak resident memory by loading and running the file;
            median. Pages of the mapped file count.
        file_bytes: size of the file.
        threads: the setting with the fastest decoding, of one thread and one for each core.
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

    1. Each round takes each number of threads, and under it each file once: A B, A B, ...
    2. Each run is a process of its own: memory is not shared with an earlier one.
    3. For each file keep the number of threads with the highest median decode speed.

    Args:
        files: GGUF files by name.

    Raises:
        StageError: a file is missing, or the engine cannot run it.
    """
    for path in files.values():
        if not path.is_file():
            raise StageError(f"no GGUF file at {path}")
    settings = sorted({1, device.cores()})
    found: dict[tuple[str, int], list[Run]] = {}
    with meter("speed", rounds * len(settings) * len(files), "runs") as bar:
        # 1.
        for _ in range(rounds):
            for threads in settings:
                for name, path in files.items():
                    # 2.
                    found.setdefault((name, threads), []).append(run(path, threads))
                    bar.advance(1)
    # 3.
    return {
        name: max(
            (_summary(path, threads, found[name, threads]) for threads in settings),
            key=lambda speed: speed.decode_tokens_per_second,
        )
        for name, path in files.items()
    }


def _summary(path: Path, threads: int, runs: list[Run]) -> Speed:
    decode = tuple(round(run.decode_tokens_per_second, 2) for run in runs)
    return Speed(
        decode_tokens_per_second=statistics.median(decode),
        decode_runs=decode,
        prefill_tokens_per_second=round(
            statistics.median(run.prefill_tokens_per_second for run in runs), 2
        ),
        peak_bytes=int(statistics.median(run.peak_bytes for run in runs)),
        file_bytes=path.stat().st_size,
        threads=threads,
        engine=version(),
    )


def run(path: Path, threads: int) -> Run:
    """Measure one file once, in a fresh process.

    Raises:
        StageError: the process fails or takes longer than `CHILD_SECONDS`.
    """
    environment = dict(os.environ)
    # Threads that sleep while they wait make decoding three times slower (engine.py).
    environment.pop("OMP_WAIT_POLICY", None)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [Path(__file__).parents[2], *sys.path]))
    command = [sys.executable, "-m", "overproof.release.speed", str(path), str(threads)]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, env=environment, capture_output=True, text=True, timeout=CHILD_SECONDS
        )
        return Run(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired as error:
        raise StageError(
            f"{path} was not measured within {CHILD_SECONDS} s", hint="is the machine busy?"
        ) from error
    except (IndexError, ValueError, TypeError) as error:
        raise StageError(
            f"{path} could not be measured",
            details=[f"exit code {done.returncode}", *done.stderr.splitlines()[-5:]],
        ) from error


def run_here(path: Path, threads: int) -> Run:
    """Measure one file in this process; memory is right only in a fresh one.

    Raises:
        StageError: the engine cannot run the file.
    """
    size = len(read_header(path).tokens)
    prompt = [(place * STRIDE) % size for place in range(PREFILL_TOKENS)]
    before = peak_resident_bytes()
    with Engine(path, context=CONTEXT, threads=threads) as engine:
        engine.generate(prompt[:1], max_tokens=WARM_TOKENS, stop=False)
        # The prompt begins with another token than the warm-up: nothing of it is cached.
        answer = engine.generate(prompt[1:] + prompt[:1], max_tokens=DECODE_TOKENS, stop=False)
    return Run(
        answer.decode_tokens_per_second,
        answer.prefill_tokens_per_second,
        peak_resident_bytes() - before,
    )


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would include the parent's memory at the fork.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import psutil

    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(run_here(Path(sys.argv[1]), int(sys.argv[2])))))
    except StageError as failure:
        print(failure.render(), file=sys.stderr)
        sys.exit(failure.exit_code)
