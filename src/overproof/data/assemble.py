"""From the lines of a source to the files of a data set."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from overproof.core.artifact import Work
from overproof.core.console import meter
from overproof.core.digest import canonical, pretty, sha256_file
from overproof.core.disk import write_atomic
from overproof.core.errors import StageError, UsageError
from overproof.data import dataset
from overproof.data.checks import duplicates
from overproof.data.judge import Accepted, Judge, Rejection
from overproof.data.keys import open_keys
from overproof.data.lines import Line, Source
from overproof.data.records import MATCHING, RecordError
from overproof.data.spool import Entry, Spool
from overproof.trust.merkle import size_and_head

FORMAT = "overproof-certificate/1"
DUPLICATES = {"name": duplicates.NAME, "version": duplicates.VERSION, "action": "reject"}
MAX_NAMED = 100  # origins or creators that the certificate names; the rest is summed up
OTHERS, NOT_STATED = "(others)", "(not stated)"
MAX_COUNTED = 100_000  # different names counted apart: an origin may be another URL each time
_UNREADABLE = ("read:", "record:")  # reasons of lines in which there is no record
METER_STEP = 256  # records between two moves of the progress bar
SHOWN = 3  # records named when a file has no readable one


@dataclass
class Assembly:
    """One data set while it is made.

    Attributes:
        path: the source file.
        sha256: its digest, 64 hex digits.
        source: its lines.
        judge: decides about each.
    """

    path: Path
    sha256: str
    source: Source
    judge: Judge
    records: int = 0
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    named: dict[str, Counter[str]] = field(default_factory=dict)

    def make(self, work: Work) -> dict[str, Any]:
        """Fill the work folder; the numbers are those of `certify.certify`. Returns the facts."""
        folder = work.folder
        try:
            with (
                (folder / dataset.REJECTED).open("wb") as rejected,
                Spool(work.scratch("spool")) as spool,
            ):
                # 2.
                self._read(spool, rejected)
                # 3.
                self._write(spool, folder, rejected)
        except UsageError:
            shutil.rmtree(folder)  # nothing of it is of use to another run
            raise
        # 4.
        with open_keys(folder / dataset.KEYS) as keys:
            size, head = size_and_head(keys)
        certificate = self._certificate({"size": size, "head": head})
        write_atomic(folder / dataset.CERTIFICATE, pretty(certificate).encode())
        # 5.
        if sha256_file(self.path) != self.sha256:
            raise StageError(
                f"{self.path} changed while it was read", hint="run the same command again"
            )
        told = ("records", "accepted", "rejected", "reasons", "licences", "tree")
        return {name: certificate[name] for name in told}

    def _read(self, spool: Spool, rejected: BinaryIO) -> None:
        unreadable: list[str] = []
        for line in self._metered():
            self.records += 1
            raw = line.raw.to_json()
            verdict = self._verdict(line)
            if isinstance(verdict, Accepted):
                spool.add(Entry(verdict.key, verdict.line, line.number, canonical(raw)))
                continue
            self._reject(rejected, line.number, verdict, raw)
            if verdict.reason.startswith(_UNREADABLE) and len(unreadable) < SHOWN:
                unreadable.append(f"line {line.number}: {verdict.detail}")
        count = sum(n for reason, n in self.reasons.items() if reason.startswith(_UNREADABLE))
        if count == self.records:
            raise _nothing_readable(self.path, self.records, unreadable)

    def _verdict(self, line: Line) -> Accepted | Rejection:
        if isinstance(line.value, RecordError):
            return Rejection(line.value.reason, line.value.what)
        return self.judge.judge(line.value)

    def _write(self, spool: Spool, folder: Path, rejected: BinaryIO) -> None:
        with (
            (folder / dataset.RECORDS).open("wb") as records,
            (folder / dataset.KEYS).open("wb") as keys,
        ):
            for entry, first in duplicates.mark(spool.sorted()):
                if first is not None:
                    detail = f"same key as line {first.number}: {MATCHING}"
                    verdict = Rejection(f"{duplicates.NAME}:exact", detail)
                    self._reject(rejected, entry.number, verdict, json.loads(entry.raw))
                    continue
                self.accepted += 1
                self._name(json.loads(entry.row))
                records.write(entry.row + b"\n")
                keys.write(bytes.fromhex(entry.key))

    def _reject(
        self, rejected: BinaryIO, number: int, verdict: Rejection, raw: dict[str, Any]
    ) -> None:
        self.reasons[verdict.reason] += 1
        rejected.write(canonical({"line": number, **verdict.to_json(), **raw}) + b"\n")

    def _name(self, row: dict[str, Any]) -> None:
        for field_name in ("licence", "origin", "creator"):
            counts = self.named.setdefault(field_name, Counter())
            name = row[field_name] or NOT_STATED
            counts[name if name in counts or len(counts) < MAX_COUNTED else OTHERS] += 1

    def _metered(self) -> Iterator[Line]:
        """The lines, with a progress bar."""
        with meter(f"certify {self.path.name}", self.source.total, self.source.unit) as bar:
            shown = done = 0
            for line in self.source.read():
                yield line
                done = line.done
                if line.number % METER_STEP == 0:
                    bar.advance(done - shown, f"{line.number:,} records")
                    shown = done
            bar.advance(done - shown)

    def _certificate(self, tree: dict[str, Any]) -> dict[str, Any]:
        found = self.judge.found
        checks = [
            {**rule.to_json(), "findings": dict(found.get(rule.check.name, {}))}
            for rule in self.judge.rules
        ]
        twice = self.reasons[f"{duplicates.NAME}:exact"]
        checks.append({**DUPLICATES, "findings": {"exact": twice} if twice else {}})
        return {
            "format": FORMAT,
            "source": {
                "name": self.path.name,
                "sha256": self.sha256,
                "bytes": self.path.stat().st_size,
            },
            "records": self.records,
            "accepted": self.accepted,
            "rejected": sum(self.reasons.values()),
            "reasons": {name: count for name, count in sorted(self.reasons.items()) if count},
            "licences": _most(self.named.get("licence", Counter()), limit=None),
            "origins": _most(self.named.get("origin", Counter())),
            "creators": _most(self.named.get("creator", Counter())),
            "checks": checks,
            "tree": tree,
            "matching": MATCHING,
        }


def _nothing_readable(path: Path, records: int, shown: list[str]) -> UsageError:
    if not records:
        return UsageError(f"{path} holds no record, only blank lines")
    return UsageError(
        f"none of {records:,} lines of {path} is a readable record",
        details=shown,
        hint="wanted one JSON object a line with prompt, messages or text",
    )


def _most(counts: Counter[str], *, limit: int | None = MAX_NAMED) -> dict[str, int]:
    """The commonest names, the rest in one sum: a certificate stays small whatever the data.

    Licences have no limit: a verifier wants an SPDX expression for each record.
    """
    rest = counts.pop(OTHERS, 0)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = dict(ordered[:limit])
    rest += sum(counts.values()) - sum(named.values())
    return named | ({OTHERS: rest} if rest else {})
