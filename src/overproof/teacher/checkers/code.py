"""A program is run, and does what it should."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from overproof.core.section import Section
from overproof.teacher.checkers.base import Checker, Finding
from overproof.teacher.checkers.sandbox import Limits, demand_no_network, end_all
from overproof.teacher.checkers.text import fenced

WRITTEN = 1 << 20  # bytes that a program may print


class Case(Section):
    """What a program reads, and what it must print, but for white space at the ends of lines."""

    input: str = ""
    output: str


class Code(Checker):
    """The answer's last code fence is a Python program that passes tests.

    It runs in a process of its own in an empty folder, without the network, with limits of time,
    memory and files. That keeps mistakes in; it is no jail: the program may read what its user may.
    """

    kind: Literal["code"]
    tests: str | None = Field(None, description="Python that follows the program; raises if wrong")
    cases: tuple[Case, ...] = Field((), description="inputs with outputs, each in a run of its own")
    seconds: float = Field(5.0, gt=0.0, le=600.0, description="of each run, by the clock")
    memory_bytes: int = Field(1 << 30, gt=0, description="address space of a run")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.tests is None and not self.cases:
            raise ValueError("needs `tests` or `cases`")
        return self

    @property
    def most_seconds(self) -> float:
        """See `Checker`."""
        return self.seconds * (len(self.cases) + (self.tests is not None)) + super().most_seconds

    def check(self, answer: str) -> Finding:
        """See `Checker`."""
        demand_no_network()
        limits = Limits(self.seconds, self.memory_bytes)
        program = fenced(answer)
        if self.tests is not None:
            # The last line is reached if nothing raised, and if the program did not just leave.
            word = secrets.token_hex(16)
            done = run(f"{program}\n{self.tests}\nprint({word!r})\n", "", limits)
            if done.trouble or not done.printed.rstrip().endswith(word):
                return Finding(False, done.trouble or "ended before its tests did")
        for number, case in enumerate(self.cases, start=1):
            done = run(program, case.input, limits)
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


def run(program: str, given: str, limits: Limits) -> Done:
    """Run a program in an empty folder within limits; what it leaves behind is ended."""
    with tempfile.TemporaryDirectory(prefix="overproof-check-") as folder:
        file, out, said = (Path(folder) / name for name in ("program.py", "printed", "said"))
        file.write_text(program, encoding="utf-8", errors="replace")
        # Files, not pipes: a program that prints without end meets its limit, not our memory.
        with out.open("wb") as stream, said.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - what it is for
                [sys.executable, "-I", "-B", str(file)],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=errors,
                cwd=folder,
                env={"LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder},
                start_new_session=True,
                preexec_fn=limits.apply,
            )
            try:
                process.communicate(given.encode(), limits.seconds)
            except subprocess.TimeoutExpired:
                return Done("", f"took longer than {limits.seconds:g} s")
            finally:
                end_all(process)
        printed, trouble = _start_of(out), _start_of(said).strip().rpartition("\n")[2]
    if process.returncode:
        return Done(printed, trouble[:120] or f"ended with exit code {process.returncode}")
    return Done(printed)


def _start_of(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(WRITTEN).decode(errors="replace")


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
