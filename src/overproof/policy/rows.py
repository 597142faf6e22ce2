"""The rows of the terms table: one file per vendor, dated, never edited once they are written."""

from __future__ import annotations

from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from overproof.core.digest import sha256_json
from overproof.core.errors import UsageError
from overproof.core.section import Section
from overproof.policy import licences
from overproof.policy.match import is_pattern
from overproof.policy.verdict import Verdict

DATA = Path(__file__).with_name("data") / "terms"

Channel = Literal["weights", "api", "consumer"]
CHANNELS: tuple[Channel, ...] = ("weights", "api", "consumer")
Kind = Literal[
    "name_prefix",
    "notice",
    "license_copy",
    "card_text",
    "acceptable_use",
    "user_limit",
    "propagate_terms",
]
# What a permissive licence asks of everybody; a row that asks for no more is a plain `allow`.
ATTRIBUTION_KINDS = ("notice", "license_copy")
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Obligation(Section):
    """Something that the terms ask of the released student.

    Attributes:
        id: unique in its row, such as `llama-3.1/name`.
        value: a prefix, a sentence, a licence identifier, an address or a number of users, as
            the kind wants it. `{teacher}` stands for the teacher's name.
        clause: where in the document it stands.
    """

    id: Text
    kind: Kind
    value: Text
    clause: str = ""

    @model_validator(mode="after")
    def _value_fits_kind(self) -> Self:
        if self.kind == "license_copy":
            try:
                licences.parse(self.value)
            except UsageError as error:
                raise ValueError(error.what) from error
        if self.kind == "user_limit" and not self.value.isdigit():
            raise ValueError(f"user_limit wants a number of users, got {self.value!r}")
        return self

    def named(self, teacher: str) -> Obligation:
        """The same obligation with the teacher's name put in."""
        return self.model_copy(update={"value": self.value.replace("{teacher}", teacher)})


class DeclaredTeacher(Section):
    """A model that the teacher itself learned from, or was cut from.

    Attributes:
        channel: how it was used; weights, unless its outputs came from a service.
        established: somebody read it at the source. Only then does its verdict join the meet;
            see docs/terms.md, "What trained the teacher".
    """

    name: Text
    relation: Literal["teacher", "base"] = "teacher"
    channel: Channel = "weights"
    established: bool
    source: Text
    note: str = ""


class Row(Section):
    """What one document says of training a released student on a teacher.

    Attributes:
        match: globs over normalised model names (see `match.normalise`).
        artefact: the weights or the service that the document covers.
        effective: first day on which the row counts.
        date_basis: what `effective` rests on: `stated` by the document; the `month` it names
            (last day taken); the `release` of the artefact, which the licence came with;
            or `seen`, the first day of the month in which we read it, where no date is known.
        retrieved: the day or month in which the text was read, ISO 8601.
        quote: verbatim; empty only where the document is silent and the verdict `allow`.
        read_at_source: read in the document itself, not in somebody's report of it.
        licence: SPDX expression of weights.
        publishers: who publishes under these names; another owner's copy gets a warning.
        supersedes: ids of rows that this one ends, where the document changed its title.
    """

    id: Text
    vendor: Text
    family: Text
    match: tuple[Text, ...] = Field(min_length=1)
    artefact: Text
    channel: Channel
    document: Text
    effective: date
    date_basis: Literal["stated", "month", "release", "seen"] = "stated"
    retrieved: str = Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")
    clause: Text
    quote: str = ""
    source: Text
    verdict: Verdict
    obligations: tuple[Obligation, ...] = ()
    read_at_source: bool
    note: str = ""
    licence: str | None = None
    publishers: tuple[Text, ...] = ()
    declared_teachers: tuple[DeclaredTeacher, ...] = ()
    supersedes: tuple[Text, ...] = ()

    @field_validator("retrieved", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, date) else value  # YAML reads a full date

    @field_validator("retrieved")
    @classmethod
    def _on_the_calendar(cls, text: str) -> str:
        date.fromisoformat(f"{text}-01"[: len("YYYY-MM-DD")])  # a month alone stands for its days
        return text

    @field_validator("match")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [pattern for pattern in patterns if not is_pattern(pattern)]
        if wrong:
            raise ValueError(f"patterns are lower case and say more than '*', got {wrong}")
        return patterns

    @field_validator("licence")
    @classmethod
    def _known_licence(cls, text: str | None) -> str | None:
        try:
            return text and licences.normalise(text)
        except UsageError as error:
            raise ValueError(error.what) from error

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.verdict is not Verdict.ALLOW and not self.quote:
            raise ValueError(f"a row that says {self.verdict} must quote its clause")
        if self.verdict is Verdict.ALLOW_WITH and not self.obligations:
            raise ValueError("allow_with needs at least one obligation")
        extra = [o.id for o in self.obligations if o.kind not in ATTRIBUTION_KINDS]
        if self.verdict is Verdict.ALLOW and extra:
            raise ValueError(f"{', '.join(extra)}: more than attribution, so write allow_with")
        if len({o.id for o in self.obligations}) < len(self.obligations):
            raise ValueError("two obligations of one id")
        return self

    @property
    def series(self) -> tuple[str, str, str]:
        """Rows of one series are versions of one document for one family; the newest counts."""
        return (self.family, self.document, self.channel)

    @property
    def row_digest(self) -> str:
        """SHA-256 of this one row's content. Fields at their default are left out, so that a field
        added to this model later changes no digest, and approvals of old rows go on holding."""
        return sha256_json(self.model_dump(mode="json", exclude_defaults=True))


@lru_cache(maxsize=8)
def load_rows(folder: Path = DATA) -> tuple[Row, ...]:
    """Read every `*.yaml` in a folder: `{vendor, rows: [...]}`.

    Raises:
        UsageError: a file is not YAML, a row lacks a date, a source or another field, or two rows
            share an id. The message names file, row and field.
    """
    rows = [row for file in sorted(folder.glob("*.yaml")) for row in _load_file(file)]
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise UsageError(f"two terms rows have the id {row.id!r}", details=[f"in {folder}"])
        seen.add(row.id)
    return tuple(rows)


def _load_file(file: Path) -> list[Row]:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}", details=str(error).splitlines()) from error
    if not isinstance(raw, dict) or set(raw) != {"vendor", "rows"} or not raw["rows"]:
        raise UsageError(f"{file} is no terms file", details=["wanted the keys vendor and rows"])
    return [_load_row(file, raw["vendor"], entry) for entry in raw["rows"]]


def _load_row(file: Path, vendor: Any, entry: Any) -> Row:
    name = entry.get("id", "without id") if isinstance(entry, dict) else repr(entry)
    try:
        return Row.model_validate({"vendor": vendor, **entry})
    except (ValidationError, TypeError) as error:
        raise UsageError(
            f"terms row {name!r} in {file} is not valid",
            details=_reasons(error),
            hint="docs/terms.md, section 'How to add a row', lists the fields",
        ) from error


def _reasons(error: ValidationError | TypeError) -> list[str]:
    if isinstance(error, TypeError):
        return ["wanted a mapping of fields"]
    return [
        f"{'.'.join(str(part) for part in row['loc']) or 'row'}: {row['msg']}"
        for row in error.errors()
    ]


def in_force(rows: tuple[Row, ...], on: date) -> list[Row]:
    """The rows that count on a day.

    1. Rows that are not effective yet are left out.
    2. So are rows that an effective row supersedes by id.
    3. Of each series the newest date counts; where two rows share it, both do.
    """
    effective = [row for row in rows if row.effective <= on]  # 1.
    ended = {name for row in effective for name in row.supersedes}
    standing = [row for row in effective if row.id not in ended]  # 2.
    newest: dict[tuple[str, str, str], date] = {}
    for row in standing:
        newest[row.series] = max(row.effective, newest.get(row.series, row.effective))
    return [row for row in standing if row.effective == newest[row.series]]  # 3.
