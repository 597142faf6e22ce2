"""From a model, a channel and a day to what the terms say."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property

from overproof.core.digest import sha256_json
from overproof.policy import match
from overproof.policy.rows import Channel, DeclaredTeacher, Obligation, Row, in_force, load_rows
from overproof.policy.verdict import Verdict, meet


@dataclass(frozen=True)
class Finding:
    """What the table says of one model on one day.

    Attributes:
        rows: the rows that apply, strictest first; none means that the terms are unknown.
        inherited: findings on established teachers or bases of this model; they join the meet.
        declared: everything that the rows declare of how the model was made, established or not.
    """

    model: str
    channel: Channel
    on: date
    rows: tuple[Row, ...]
    inherited: tuple[Finding, ...] = ()
    declared: tuple[DeclaredTeacher, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The strictest over all rows and over what is inherited; `unknown` without a row."""
        if not self.rows:
            return Verdict.UNKNOWN
        return meet([*(row.verdict for row in self.rows), *(f.verdict for f in self.inherited)])

    @property
    def deciding(self) -> Finding:
        """The finding, this one or an inherited one, whose row sets the verdict."""
        stricter = [f for f in self.inherited if f.verdict.rank < self._own.rank]
        return min(stricter, key=lambda f: f.verdict.rank).deciding if stricter else self

    @property
    def row(self) -> Row | None:
        """The row that decides; None where the terms of the deciding model are unknown."""
        found = self.deciding
        return found.rows[0] if found.rows else None

    @property
    def _own(self) -> Verdict:
        return self.rows[0].verdict if self.rows else Verdict.UNKNOWN

    @property
    def obligations(self) -> tuple[Obligation, ...]:
        """What all applicable rows ask for, inherited ones included, each once."""
        name = match.display(self.model)
        own = [obligation.named(name) for row in self.rows for obligation in row.obligations]
        return unique([*own, *(o for f in self.inherited for o in f.obligations)])

    @cached_property
    def terms_digest(self) -> str:
        """SHA-256 that an approval names: the channel, every applicable row, what is inherited."""
        return sha256_json(
            {
                "channel": self.channel,
                "rows": sorted(row.row_digest for row in self.rows),
                "inherited": sorted(f.terms_digest for f in self.inherited),
            }
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know that changes no verdict."""
        return (*self._made_from(), *self._name_only(), *self._unread())

    def _made_from(self) -> list[str]:
        return [
            f"{match.stated(self.model)} is said to derive from {teacher.name} "
            f"({teacher.relation}; {teacher.source}). {teacher.note}".rstrip()
            + " Not established, so it does not change the verdict."
            for teacher in self.declared
            if not teacher.established
        ]

    def _name_only(self) -> list[str]:
        if self.channel != "weights" and self.verdict.permits:
            hosts = ", ".join(dict.fromkeys(row.artefact for row in self.rows))
            return [f"this holds for {hosts}; another host of the same model has its own terms"]
        if self.rows and match.is_path(self.model):
            return [
                "judged by the name of a file or folder only: whose weights these are, and what "
                "was done to them, is not known"
            ]
        publishers = {name for row in self.rows for name in row.publishers}
        owner = match.owner(self.model)
        if owner is None or not publishers or owner in publishers:
            return []
        return [
            f"{owner!r} is not the publisher ({', '.join(sorted(publishers))}): judged by the name "
            "only; what was done to the copy, and with which data, is not known"
        ]

    def _unread(self) -> list[str]:
        return [
            f"{row.document} was not read at the source ({row.source}); re-check it"
            for row in self.rows
            if not row.read_at_source
        ]


def unique(obligations: Sequence[Obligation]) -> tuple[Obligation, ...]:
    """Obligations in order, each id and value once."""
    return tuple({(o.id, o.value): o for o in obligations}.values())


def lookup(model: str, channel: Channel, on: date, rows: tuple[Row, ...] | None = None) -> Finding:
    """What the terms say of training a released student on a model.

    1. Keep the rows of the channel that are in force on the day.
    2. Of each vendor keep the most specific match. A name that two vendors' patterns match
       (`llama-3.1-nemotron-70b`) is ambiguous: the rows of both apply.
    3. Order them strictest first; the first decides, the obligations of all are joined.
    4. Look up what the model derives from, where that is established, and join its verdict.

    Args:
        model: hub name, API model name, path, or `builtin:NAME`. The name is all that is judged.
        on: the day; an older one replays what counted then.
        rows: the table, by default the one that ships with Overproof.

    Raises:
        UsageError: the table on disk is not valid.
    """
    table = load_rows() if rows is None else rows
    return _lookup(model, channel, on, table, ())


def _lookup(
    model: str, channel: Channel, on: date, rows: tuple[Row, ...], above: tuple[str, ...]
) -> Finding:
    standing = [row for row in in_force(rows, on) if row.channel == channel]  # 1.
    scores = {row.id: match.score(row.match, model) for row in standing}
    best: dict[str, int] = {}
    for row in standing:
        best[row.vendor] = max(best.get(row.vendor, 0), scores[row.id])
    found = [row for row in standing if scores[row.id] and scores[row.id] == best[row.vendor]]  # 2.
    found.sort(key=lambda row: (row.verdict.rank, -scores[row.id], row.id))  # 3.
    declared = tuple({d.name: d for row in found for d in row.declared_teachers}.values())
    seen = (*above, match.normalise(model))
    inherited = tuple(
        _lookup(teacher.name, teacher.channel, on, rows, seen)
        for teacher in declared
        if teacher.established
        and match.normalise(teacher.name) not in seen  # models can form a ring
    )  # 4.
    return Finding(model, channel, on, tuple(found), inherited, declared)


def known_families(channel: Channel, on: date, rows: tuple[Row, ...] | None = None) -> list[str]:
    """Families that have a row in force, sorted."""
    table = load_rows() if rows is None else rows
    return sorted({row.family for row in in_force(table, on) if row.channel == channel})


def nearest_family(
    model: str, channel: Channel, on: date, rows: tuple[Row, ...] | None = None
) -> str | None:
    """The known family whose name is closest to a model's, for "did you mean"."""
    families = {name.lower(): name for name in known_families(channel, on, rows)}
    base = match.forms(model)[-1] if match.forms(model) else ""
    close = difflib.get_close_matches(base, families, n=1, cutoff=0.6)
    return families[close[0]] if close else None
