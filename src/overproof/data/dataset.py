"""Reading a certified data set back: its rows, its keys, its certificate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overproof.core.artifact import MANIFEST, Artifact, load
from overproof.core.digest import canonical
from overproof.core.errors import StageError, UsageError
from overproof.data.records import Record, parse

KIND = "dataset"
RECORDS, REJECTED, CERTIFICATE, KEYS = (
    "records.jsonl",
    "rejected.jsonl",
    "certificate.json",
    "keys.bin",
)


@dataclass(frozen=True)
class Row:
    """One accepted record with what is known of it.

    Attributes:
        key: 64 hex digits, SHA-256 of the canonical form of `record`.
        record: the record, its text as read.
        licence: normalised SPDX expression.
        origin: where it came from, as stated.
        creator: who made it, as stated.
        extra: every other field, not part of the key and not checked.
        findings: what checks with the action `warn` found.
    """

    key: str
    record: Record
    licence: str
    origin: str | None = None
    creator: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Mapping[str, Any], ...] = ()

    def to_line(self) -> bytes:
        """Canonical JSON (RFC 8785) without a line end.

        Raises:
            UsageError: `extra` holds what canonical JSON cannot, such as an infinite number.
        """
        row: dict[str, Any] = {
            "key": self.key,
            "record": self.record.to_json(),
            "licence": self.licence,
            "origin": self.origin,
            "creator": self.creator,
            "extra": dict(self.extra),
        }
        if self.findings:
            row["findings"] = [dict(finding) for finding in self.findings]
        return canonical(row)

    @classmethod
    def from_line(cls, line: bytes) -> Row:
        """The row in one line of `records.jsonl`.

        Raises:
            StageError: the line was not written by `to_line`.
        """
        try:
            row = json.loads(line)
            row["record"] = parse(row["record"])
            row["findings"] = tuple(row.get("findings", ()))
            return cls(**row)
        except (ValueError, TypeError, KeyError, UsageError) as error:
            raise StageError(f"{RECORDS} has a row of another version: {error!r}") from error


def open_dataset(path: Path) -> Artifact:
    """The certified data set in a folder.

    Raises:
        UsageError: nothing there, a file, a folder without a manifest, or another artifact.
        StageError: a damaged artifact.
    """
    if not (path / MANIFEST).is_file():
        raise _no_dataset(path, _what_is_at(path))
    artifact = load(path)
    if artifact.kind != KIND:
        raise _no_dataset(path, f"an artifact of kind {artifact.kind!r}")
    return artifact


def _what_is_at(path: Path) -> str:
    if path.is_dir():
        return f"a folder without {MANIFEST}"
    return "a file" if path.exists() else "nothing there"


def _no_dataset(path: Path, got: str) -> UsageError:
    return UsageError(
        f"{path} is no certified data set",
        details=[f"got {got}, wanted the folder that overproof certify made"],
        hint="make one with: overproof certify FILE",
    )


def rows(dataset: Artifact) -> Iterator[Row]:
    """The accepted records, sorted by key.

    Raises:
        StageError: a row cannot be read.
    """
    with dataset.file(RECORDS).open("rb") as stream:
        for line in stream:
            yield Row.from_line(line)


def certificate(dataset: Artifact) -> dict[str, Any]:
    """The certificate of a data set.

    Raises:
        StageError: it is no JSON object.
    """
    try:
        value = json.loads(dataset.file(CERTIFICATE).read_bytes())
    except ValueError as error:
        raise StageError(f"{dataset.path / CERTIFICATE} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise StageError(f"{dataset.path / CERTIFICATE} is no JSON object")
    return value
