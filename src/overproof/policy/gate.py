"""The gate: one decision over every teacher, before the first token of any is used."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from overproof.core.contract import BASE, TEACHER, USE
from overproof.core.errors import PolicyError, StageError, TrustError, UsageError
from overproof.core.section import Section
from overproof.policy import match
from overproof.policy.lookup import Finding, lookup, unique
from overproof.policy.rows import CHANNELS, Channel, Obligation, Row
from overproof.policy.verdict import Verdict, meet
from overproof.policy.words import MEANING, about_the_unknown, title, what_allows

USES = (USE,)
Sha256 = r"^[0-9a-f]{64}$"
Json = dict[str, Any]


@dataclass(frozen=True)
class Teacher:
    """A model to learn from, or to take weights from.

    Attributes:
        name: as the user calls it, a path from the root; the terms are found by it.
        sha256: digest of its weights, 64 hex digits; of a service, that of its name and place.
        kind: `base`: the student has its weights, whatever channel the teacher is used through.
    """

    name: str
    sha256: str | None = None
    kind: str = TEACHER

    @property
    def stated(self) -> str:
        """How a proof names it."""
        return match.stated(self.name)


class Approval(Section):
    """Somebody's signed word that one teacher may be used although the table refuses it.

    Attributes:
        sha256: the weights it is for; None for any under that name, which no file or folder has.
        terms_digest: as `overproof terms` prints it; when a row that applies changes, the approval
            no longer fits and must be given again.
        approver: id of the key that signed.
        expires: last day on which it counts.
    """

    format: Literal["overproof-approval/1"] = "overproof-approval/1"
    teacher: str = Field(min_length=1)
    sha256: str | None = Field(None, pattern=Sha256)
    terms_digest: str = Field(pattern=Sha256)
    approver: str = Field(min_length=1)
    date: dt.date
    expires: dt.date
    note: str = ""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.expires < self.date:
            raise ValueError("it expires before its date")
        return self

    def why_not(self, teacher: Teacher, finding: Finding) -> str | None:
        """Why it does not cover this finding; None if it does."""
        if self.sha256 is not None and self.sha256 != teacher.sha256:
            return f"it is for weights {self.sha256}, these are {teacher.sha256 or 'not hashed'}"
        if self.terms_digest != finding.terms_digest:
            return (
                f"it is for terms digest {self.terms_digest}, "
                f"the table now gives {finding.terms_digest}"
            )
        if not self.date <= finding.on <= self.expires:
            return f"it counts from {self.date} to {self.expires}, not on {finding.on}"
        if self.sha256 is None and match.is_path(teacher.name):
            return "it names no weights, and a file or folder is known by its digest alone"
        return None


@dataclass(frozen=True)
class Ruling:
    """What was decided for one teacher.

    Attributes:
        approval: the approval that lifts a refusal, if one does.
        rejected: why approvals for this teacher did not count.
    """

    teacher: Teacher
    finding: Finding
    approval: Approval | None = None
    rejected: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The table's verdict, or what an approval makes of it."""
        if self.approval is None:
            return self.finding.verdict
        return Verdict.ALLOW_WITH if self.obligations else Verdict.ALLOW

    @property
    def obligations(self) -> tuple[Obligation, ...]:
        """What the terms ask of the student; an approval lifts the refusal, not these."""
        return self.finding.obligations

    @property
    def display(self) -> str:
        """The teacher as released files name it."""
        return match.display(self.teacher.name)


@dataclass(frozen=True)
class Decision:
    """The verdict over all teachers: the strictest of theirs."""

    channel: Channel
    use: str
    on: dt.date
    rulings: tuple[Ruling, ...]

    @property
    def verdict(self) -> Verdict:
        """The meet over all teachers."""
        return meet(ruling.verdict for ruling in self.rulings)

    @property
    def deciding(self) -> Ruling:
        """The ruling that sets the verdict, the first of equals."""
        return min(self.rulings, key=lambda ruling: ruling.verdict.rank)

    @property
    def obligations(self) -> tuple[Obligation, ...]:
        """What the student must meet, over all teachers, each once."""
        return unique([o for ruling in self.rulings for o in ruling.obligations])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know that changes no verdict."""
        return tuple(dict.fromkeys(w for r in self.rulings for w in r.finding.warnings))

    def require(self) -> Decision:
        """The decision itself, if it permits the run.

        Raises:
            PolicyError: it does not. The message names teacher, document, date and clause, and says
                what would allow it.
        """
        refused = [ruling for ruling in self.rulings if not ruling.verdict.permits]
        if not refused:
            return self
        names = ", ".join(ruling.teacher.name for ruling in refused)
        raise PolicyError(
            f"{names}: the terms do not permit training a model on it and releasing it"
            if len(refused) == 1
            else f"{names}: the terms do not permit training a model on them and releasing it",
            details=[line for ruling in refused for line in _refusal(ruling)],
            hint=f"what would allow it: {'; or '.join(what_allows(self.deciding.finding))}",
        )

    def to_json(self, done: Collection[str] = ()) -> Json:
        """The terms-verdict predicate of the deciding teacher; `predicates` has all.

        Args:
            done: ids of obligations that were carried out and rechecked.
        """
        return self._predicate(self.deciding, done)

    def predicates(self, done: Collection[str] = ()) -> list[Json]:
        """One terms-verdict predicate per teacher, in the order in which they were given."""
        return [self._predicate(ruling, done) for ruling in self.rulings]

    def _predicate(self, ruling: Ruling, done: Collection[str]) -> Json:
        predicate: Json = {
            "teacher": {"name": ruling.teacher.stated, "sha256": ruling.teacher.sha256},
            "channel": ruling.finding.channel,
            "use": self.use,
            "on": self.on.isoformat(),
            "verdict": str(ruling.verdict),
            "row": _row_json(ruling.finding.row),
            "terms_digest": ruling.finding.terms_digest,
            "obligations": [
                {"id": o.id, "kind": o.kind, "value": o.value, "done": o.id in done}
                for o in ruling.obligations
            ],
            "warnings": list(ruling.finding.warnings),
        }
        if ruling.approval is not None:
            given = ruling.approval.model_dump(mode="json")
            predicate["approval"] = {**given, "teacher": match.stated(ruling.approval.teacher)}
        return predicate


def _row_json(row: Row | None) -> Json | None:
    if row is None:
        return None
    fields = (
        "family",
        "artefact",
        "document",
        "effective",
        "clause",
        "quote",
        "source",
        "retrieved",
    )
    whole = row.model_dump(mode="json")
    return {name: whole[name] for name in fields}


def _refusal(ruling: Ruling) -> list[str]:
    found = ruling.finding
    lines = [f"{ruling.teacher.name}, channel {found.channel}, on {found.on}: {found.verdict}"]
    if found.deciding is not found:
        lines.append(f"it derives from {found.deciding.model}, whose terms decide")
    if found.row:
        lines.append(f"{title(found.row)}, clause {found.row.clause}: “{found.row.quote}”")
        lines.append(f"read {found.row.retrieved} in {found.row.source}")
    else:
        lines += [MEANING[Verdict.UNKNOWN], *about_the_unknown(found.deciding)]
    return lines + [f"an approval does not count: {reason}" for reason in ruling.rejected]


def decide(
    teachers: Sequence[Teacher],
    *,
    channel: Channel,
    on: dt.date,
    use: str = USE,
    approvals: Sequence[Approval] = (),
    rows: tuple[Row, ...] | None = None,
) -> Decision:
    """Decide whether a student may be trained on these teachers.

    1. Look every teacher up for the channel and the day.
    2. Where the table refuses, look for an approval of this teacher, these rows and this day.
    3. The decision is the meet of the rulings: adding a teacher never loosens it.

    Args:
        approvals: already verified, see `load_approval`.
        rows: the table, by default the one that ships with Overproof.

    Raises:
        UsageError: no teacher, or a channel or use that does not exist.
    """
    if not teachers:
        raise UsageError("no teacher to decide on")
    if channel not in CHANNELS:
        raise UsageError(f"no channel {channel!r}", details=[f"known: {', '.join(CHANNELS)}"])
    if use not in USES:
        raise UsageError(f"no use {use!r}", details=[f"known: {', '.join(USES)}"])
    rulings = [
        _rule(
            one, lookup(one.name, "weights" if one.kind == BASE else channel, on, rows), approvals
        )
        for one in teachers
    ]
    return Decision(channel, use, on, tuple(rulings))


def _rule(teacher: Teacher, finding: Finding, approvals: Sequence[Approval]) -> Ruling:
    if finding.verdict.permits:
        return Ruling(teacher, finding)
    rejected = []
    for approval in approvals:
        # An approval travels: where somebody keeps the model says nothing.
        asked, given = (match.normalise(match.display(n)) for n in (teacher.name, approval.teacher))
        if asked != given:
            continue
        reason = approval.why_not(teacher, finding)
        if reason is None:
            return Ruling(teacher, finding, approval)
        rejected.append(reason)
    return Ruling(teacher, finding, rejected=tuple(rejected))


def load_approval(path: Path, verify: Callable[[bytes], tuple[bytes, str]]) -> Approval:
    """Read a signed approval.

    Args:
        verify: checks the signature of the file's bytes and returns the signed payload (JSON, the
            fields of `Approval` without `approver`) and the id of the key. It raises `TrustError`
            for a signature that does not hold. The gate itself knows no keys.

    Raises:
        StageError: the file cannot be read.
        TrustError: the signature does not hold, or the payload is no approval.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise StageError(f"cannot read the approval {path}: {error.strerror}") from error
    payload, key = verify(raw)
    try:
        fields = json.loads(payload)
        if not isinstance(fields, dict):
            raise TypeError("the payload is not an object")
        if fields.get("approver", key) != key:
            raise TypeError(f"it names {fields['approver']!r} as approver, but {key!r} signed it")
        return Approval.model_validate({**fields, "approver": key})
    except (ValidationError, ValueError, TypeError) as error:
        raise TrustError(
            f"{path} is no approval",
            details=str(error).splitlines(),
            hint="docs/terms.md, section 'Approvals', lists the fields",
        ) from error
