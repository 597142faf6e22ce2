"""One line in, a row or a reason out: the rules of certification, without files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from overproof.core.errors import UsageError
from overproof.data.checks import Action, Candidate, Check, Finding
from overproof.data.dataset import Row
from overproof.data.records import (
    FORMS,
    RecordError,
    canonical_form,
    clean_text,
    key_of,
    parse,
)
from overproof.policy import licences

Named = tuple[str, Finding]  # a finding with the name of its check
MAX_SAFE_INTEGER = 2**53 - 1  # largest integer of canonical JSON, RFC 8785 section 3.2.2.3
_LICENCE = ("licence", "license")  # both spellings are common; they are one field
_KNOWN = {*FORMS, *_LICENCE, "origin", "creator"}


@dataclass(frozen=True)
class Rule:
    """A check and what a finding does to the record."""

    check: Check
    action: Action

    def to_json(self) -> dict[str, str]:
        """Name, version and action."""
        return {"name": self.check.name, "version": self.check.version, "action": self.action}


@dataclass(frozen=True)
class Rejection:
    """Why a record was left out.

    Attributes:
        reason: a fixed word, `area:what`.
        detail: the same in words; names places, never personal data.
        findings: what the checks found.
    """

    reason: str
    detail: str
    findings: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For a row of `rejected.jsonl`."""
        row: dict[str, Any] = {"reason": self.reason, "detail": self.detail}
        if self.findings:
            row["findings"] = [dict(finding) for finding in self.findings]
        return row


@dataclass(frozen=True)
class Accepted:
    """A record that is in.

    Attributes:
        key: 64 hex digits.
        line: its canonical row, see `dataset.Row`.
    """

    key: str
    line: bytes


@dataclass(frozen=True)
class Judge:
    """Decides about records one at a time.

    Attributes:
        rules: the checks; the first that finds something gives the reason.
        licence: normalised SPDX expression for records that name none.
        origin: origin for records that name none.
        found: findings of each check by kind, counted over every record judged.
    """

    rules: Sequence[Rule]
    licence: str | None = None
    origin: str | None = None
    found: dict[str, Counter[str]] = field(default_factory=dict)

    def judge(self, value: Mapping[str, Any]) -> Accepted | Rejection:
        """Accept or reject one JSON object.

        1. It is a record: `records.parse`.
        2. Its licence is a known SPDX expression; origin and creator are texts.
        3. No check that rejects finds anything; what the others find stays with the row.
        4. The row has a canonical form.
        """
        try:
            # 1.
            record = parse(value)
            form = canonical_form(record)
            candidate = Candidate(record, form, key_of(form))
            # 2.
            licence = self._licence_of(value)
            origin = _optional_text(value, "origin") or self.origin
            creator = _optional_text(value, "creator")
        except RecordError as error:
            return Rejection(error.reason, error.what)
        # 3.
        bad, noted = self._check(candidate)
        if bad:
            return _rejection(bad, noted)
        # 4.
        key = candidate.key.hex()
        row = Row(key, record, licence, origin, creator, _extra(value), _to_json(noted))
        try:
            return Accepted(key, row.to_line())
        except UsageError as error:
            return Rejection("record:no-canonical-form", error.what)

    def _check(self, candidate: Candidate) -> tuple[list[Named], list[Named]]:
        """The findings that reject, and the others."""
        bad: list[Named] = []
        noted: list[Named] = []
        for rule in self.rules:
            findings = [(rule.check.name, finding) for finding in rule.check(candidate)]
            (bad if rule.action == "reject" else noted).extend(findings)
            if findings:
                count = self.found.setdefault(rule.check.name, Counter())
                count.update(finding.kind for _, finding in findings)
        return bad, noted

    def _licence_of(self, value: Mapping[str, Any]) -> str:
        own = {text for name in _LICENCE if (text := _optional_text(value, name)) is not None}
        if len(own) > 1:
            raise RecordError("licence:ambiguous", f"licence and license differ: {sorted(own)}")
        if not own:
            if self.licence is None:
                raise RecordError(
                    "licence:missing", "names no licence, and no --licence was given for those"
                )
            return self.licence
        try:
            return licences.normalise(own.pop())
        except UsageError as error:
            hint = f"; {error.hint}" if error.hint else ""
            raise RecordError("licence:unknown", f"{error.what}{hint}") from error


def _rejection(bad: Sequence[Named], noted: Sequence[Named]) -> Rejection:
    name, first = bad[0]
    more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    return Rejection(f"{name}:{first.kind}", f"{first}{more}", _to_json([*bad, *noted]))


def _to_json(findings: Sequence[Named]) -> tuple[Mapping[str, Any], ...]:
    return tuple({"check": name, **finding.to_json()} for name, finding in findings)


def _optional_text(value: Mapping[str, Any], name: str) -> str | None:
    given = value.get(name)
    if given is None or given == "":
        return None
    return clean_text(given, name)


def _extra(value: Mapping[str, Any]) -> dict[str, Any]:
    """Every other field that is not null."""
    return {
        name: _exact(given)
        for name, given in value.items()
        if name not in _KNOWN and given is not None
    }


def _exact(value: Any) -> Any:
    """Integers that canonical JSON cannot hold become decimal text: long ids stay exact."""
    if isinstance(value, dict):
        return {name: _exact(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_exact(inner) for inner in value]
    if isinstance(value, int) and abs(value) > MAX_SAFE_INTEGER:
        return str(value)
    return value
