"""Say what a teacher's terms allow: verdict, clause, obligations and source."""

from __future__ import annotations

import os
import re
import textwrap
from dataclasses import dataclass
from datetime import date
from typing import Any

from pydantic import Field

from overproof.core.errors import PolicyError, UsageError
from overproof.core.section import Section
from overproof.policy import match
from overproof.policy.lookup import Finding, lookup
from overproof.policy.rows import Channel, Row
from overproof.policy.words import (
    MEANING,
    NOT_ADVICE,
    about_the_unknown,
    duty,
    title,
    what_allows,
)

__all__ = ["Config", "Finding", "Result", "lookup", "render", "run"]

WIDTH = 96  # columns of the printed verdict
LABEL = 11  # columns of a label such as "Document"
LABELLED = re.compile(rf"(?=.{{{LABEL}}}\S)[A-Z][a-z]+ {{2,}}")


class Config(Section):
    """What to look up."""

    model: str = Field(description="hub name, API model name, path, or builtin:NAME")
    channel: Channel = Field(
        "weights", description="how you use it: weights on your machine, an api, a consumer app"
    )
    on: date | None = Field(None, description="the day to judge for, today by default")


@dataclass(frozen=True)
class Result:
    """The answer of the verb."""

    finding: Finding

    @property
    def exit_code(self) -> int:
        """0 where the use is permitted, 3 (checked and rejected) where it is not."""
        return 0 if self.finding.verdict.permits else PolicyError.exit_code

    def to_json(self) -> dict[str, Any]:
        """Everything that `render` prints, for machines."""
        found = self.finding
        permits = found.verdict.permits
        return {
            "model": found.model,
            "channel": found.channel,
            "on": found.on.isoformat(),
            "verdict": str(found.verdict),
            "meaning": MEANING[found.verdict],
            "row": found.row.model_dump(mode="json") if found.row else None,
            "terms_digest": found.terms_digest,
            "also": [row.id for row in _all_rows(found) if row != found.row],
            "obligations": [o.model_dump(mode="json") for o in found.obligations],
            "declared_teachers": [d.model_dump(mode="json") for d in found.declared],
            "warnings": list(found.warnings),
            "known": [] if found.deciding.rows else about_the_unknown(found.deciding),
            "what_allows": [] if permits else what_allows(found),
            "disclaimer": NOT_ADVICE,
        }


def run(config: Config) -> Result:
    """Look a model up in the table that ships with Overproof.

    Raises:
        UsageError: the model's name is blank, or the table is not valid.
    """
    if not config.model.strip():
        raise UsageError("the name of the model is blank", hint="overproof terms MODEL")
    # As `distill` takes it: what is here goes before what the hub calls so.
    here = match.from_root(config.model)
    model = here if os.path.exists(here) else config.model  # noqa: PTH110 (raises for no name)
    return Result(lookup(model, config.channel, config.on or date.today()))


def render(result: Result) -> str:
    """The verdict for a person, a lawyer among them: plain text, several lines."""
    found = result.finding
    head = f"{found.model}, channel {found.channel}, on {found.on}: {found.verdict.upper()}"
    blocks = [
        [head, MEANING[found.verdict]],
        _row_block(found.row) if found.row else about_the_unknown(found.deciding),
        _list("Also applies", _others(found)),
        _list("What must be done", map(duty, found.obligations) if result.exit_code == 0 else []),
        _list("What would allow it", what_allows(found) if result.exit_code else []),
        _list("Warnings", found.warnings),
        [f"Terms digest {found.terms_digest}", NOT_ADVICE],
    ]
    return "\n\n".join("\n".join(_wrap(line) for line in block) for block in blocks if block)


def _all_rows(found: Finding) -> list[Row]:
    return [*found.rows, *(row for f in found.inherited for row in _all_rows(f))]


def _others(found: Finding) -> list[str]:
    return [f"{title(row)}: {row.verdict}" for row in _all_rows(found) if row != found.row]


def _list(heading: str, entries: Any) -> list[str]:
    lines = [f"  - {entry}" for entry in entries]
    return [heading, *lines] if lines else []


def _row_block(row: Row) -> list[str]:
    how = "read at the source" if row.read_at_source else "not read at the source"
    fields = {
        "Document": title(row),
        "Covers": row.artefact,
        "Clause": row.clause,
        "Quote": f"“{row.quote}”" if row.quote else "none: the document restricts nothing here",
        "Note": row.note,
        "Source": f"{row.source}, {how}, {row.retrieved}",
    }
    return [f"{label:<{LABEL}}{text}" for label, text in fields.items() if text]


def _wrap(line: str) -> str:
    """Wrap a line; what follows hangs under a label's text or under a bullet's."""
    indent = "    " if line.startswith("  ") else " " * LABEL if LABELLED.match(line) else ""
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
