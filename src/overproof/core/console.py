"""Where words go: data to stdout, logs and progress to stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

PLAIN_INTERVAL_SECONDS = 15.0  # how often a log without a terminal repeats the progress


class Meter:
    """One progress bar: units done, throughput, time left.

    On a terminal it is a live bar; elsewhere (CI, a log file) one line every
    `PLAIN_INTERVAL_SECONDS`, so that a long stage never looks dead.
    """

    def __init__(self, label: str, total: int, unit: str, progress: Progress | None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._progress = progress
        self._task = progress.add_task(label, total=total, note="") if progress else None
        self._start = self._last = time.monotonic()
        self._done = self._skipped = 0

    def skip(self, units: int) -> None:
        """Count units that an earlier run finished: they move the bar, not the throughput."""
        self._skipped += units
        self.advance(units)

    @property
    def rate(self) -> float:
        """Units a second of this run, what was skipped left out."""
        return (self._done - self._skipped) / max(time.monotonic() - self._start, 1e-9)

    def advance(self, units: int, note: str = "") -> None:
        """Count finished units; `note` is a short text such as the current loss."""
        self._done += units
        rate = self.rate
        digits = 0 if rate >= 10 else 2
        text = f"{rate:,.{digits}f} {self.unit}/s {note}".strip()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=units, note=text)
        elif time.monotonic() - self._last >= PLAIN_INTERVAL_SECONDS:
            self._last = time.monotonic()
            left = (self.total - self._done) / rate if rate > 0 else float("inf")
            err.print(
                f"  {self.label}: {self._done:,}/{self.total:,} {self.unit}, {text}, "
                f"{left:,.0f} s left"
            )


@contextmanager
def meter(label: str, total: int, unit: str) -> Iterator[Meter]:
    """Show the progress of `total` units on stderr while the block runs."""
    if not err.is_terminal:
        yield Meter(label, total, unit, None)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        yield Meter(label, total, unit, progress)


def note(text: str) -> None:
    """One line for the reader, on stderr."""
    err.print(text, markup=False)
