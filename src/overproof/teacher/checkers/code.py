"""A program is run, and does what it should."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from overproof.core.section import Section
from overproof.teacher.checkers.base import Checker, Finding
from overproof.teacher.checkers.sandbox import (
    FILE_BYTES,
    Limits,
    demand_no_network,
    end_all,
    end_orphans,
)
from overproof.teacher.checkers.text import fenced

PYTHON = [sys.executable, "-s", "-P", "-B"]
# Program and tests are compiled apart, so that neither can swallow a line of the other. The word
# that says that the tests were passed comes by the standard input, and stands in no file.
HARNESS = """
import os, sys, types
fd, word = int(sys.argv[3]), sys.stdin.readline().strip().encode()
texts = []
for name in sys.argv[1:3]:
    with open(name, encoding="utf-8") as stream:
        texts.append(stream.read())
    os.unlink(name)
sys.argv = ["program.py"]
module = types.ModuleType("program")
sys.modules["program"] = module
exec(compile(texts[0], "program.py", "exec"), module.__dict__)
exec(compile(texts[1], "tests.py", "exec"), module.__dict__)
os.write(fd, word)
os._exit(0)
"""


class Case(Section):
    """What a program reads, and what it must print, but for white space at the ends of lines."""

    input: str = ""
    output: str


class Code(Checker):
    """The answer's last fence of Python is a program that passes tests.

    It runs in a process of its own in an empty folder, without the network, with limits of time,
    memory and files. That keeps mistakes in; it is no jail: the program may read what its user may.
    """

    kind: Literal["code"]
    tests: str | None = Field(None, description="Python that follows the program; raises if wrong")
    cases: tuple[Case, ...] = Field((), description="inputs with outputs, each in a run of its own")
    seconds: float = Field(5.0, gt=0.0, le=600.0, description="of computing, of each run")
    memory_bytes: int = Field(1 << 30, gt=0, description="address space of each process of a run")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.tests is None and not self.cases:
            raise ValueError("needs `tests` or `cases`")
        return self

    @property
    def limits(self) -> Limits:
        """Of each run."""
        return Limits(self.seconds, self.memory_bytes)

    @property
    def most_seconds(self) -> float:
        """See `Checker`."""
        runs = len(self.cases) + (self.tests is not None)
        return self.limits.patience * runs + super().most_seconds

    def prepare(self) -> None:
        """See `Checker`."""
        demand_no_network()

    def check(self, answer: str) -> Finding:
        """See `Checker`."""
        demand_no_network()
        program = fenced(answer, "python", "py", "python3")
        if self.tests is not None:
            trouble = tested(program, self.tests, self.limits)
            if trouble:
                return Finding(False, trouble)
        for number, case in enumerate(self.cases, start=1):
            done = printed(program, case.input, self.limits)
            if done.trouble:
                return Finding(False, f"case {number}: {done.trouble}")
            if _lines(done.printed) != _lines(case.output):
                return Finding(False, f"case {number}: printed something else")
        return Finding(True)


class Done(NamedTuple):
    """A run that is over.

    Attributes:
        trouble: why it did not end as it should; empty if it did.
    """

    printed: str
    trouble: str = ""


def tested(program: str, tests: str, limits: Limits) -> str:
    """What went wrong in a program or its tests; empty: nothing."""
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        files = [
            _written(Path(folder) / f"{n}.py", text) for n, text in enumerate((program, tests))
        ]
        verdict = Path(folder) / "verdict"
        with verdict.open("wb") as stream:
            fd = stream.fileno()
            done = _run(["-c", HARNESS, *files, str(fd)], word + "\n", Path(folder), limits, fd)
        passed = _start_of(verdict) == word
    return "" if passed else done.trouble or "ended before its tests did"


def printed(program: str, given: str, limits: Limits) -> Done:
    """What a program prints."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = _written(Path(folder) / "program.py", program)
        return _run([file], given, Path(folder), limits)


def _run(arguments: list[str], given: str, folder: Path, limits: Limits, *fds: int) -> Done:
    """Run Python in an empty folder within limits; what it leaves behind is ended."""
    inside, out, said = folder / "work", folder / "printed", folder / "said"
    inside.mkdir()
    # Files, not pipes: a program that prints without end meets its limit, not our memory.
    with out.open("wb") as stream, said.open("wb") as errors:
        process = subprocess.Popen(  # noqa: S603 - what it is for
            [*PYTHON, *arguments],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=errors,
            cwd=inside,
            env={
                "LANG": "C.UTF-8",
                "HOME": str(inside),
                "TMPDIR": str(inside),
                # Equal programs have equal verdicts, on any number of cores.
                "PYTHONHASHSEED": "0",
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
            start_new_session=True,
            preexec_fn=limits.apply,
            pass_fds=fds,
        )
        try:
            process.communicate(given.encode(), limits.patience)
        except subprocess.TimeoutExpired:
            return Done("", f"did not end in {limits.patience:g} s")
        finally:
            end_all(process)
            end_orphans()
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Done("", f"took longer than {limits.seconds:g} s of computing")
    if process.returncode:
        last = _start_of(said).strip().rpartition("\n")[2]
        return Done("", last[:120] or f"ended with exit code {process.returncode}")
    return Done(_start_of(out))


def _written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8", errors="replace")
    return str(path)


def _start_of(file: Path) -> str:
    with file.open("rb") as stream:
        return os.read(stream.fileno(), FILE_BYTES).decode(errors="replace")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
