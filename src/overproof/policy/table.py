"""The table of all rows in docs/terms.md: `python -m overproof.policy.table docs/terms.md`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from overproof.core.console import note
from overproof.core.disk import write_atomic
from overproof.core.errors import UsageError
from overproof.policy.rows import Row, load_rows
from overproof.policy.words import title

BEGIN = "<!-- rows: begin (generated) -->"
END = "<!-- rows: end -->"
SHOWN_DIGEST = 12  # hex digits; enough to see that a row was edited
COLUMNS = (
    "Family", "Channel", "Document", "Clause", "Verdict", "Obligations", "Read", "Row digest",
)  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """All rows as a Markdown table, ordered by vendor, family, channel and date."""
    ordered = sorted(rows, key=lambda row: (row.vendor, row.family, row.channel, row.effective))
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    return "\n".join([*lines, *(_line(_cells(row)) for row in ordered)])


def updated(text: str, rows: Sequence[Row]) -> str:
    """A document with the table between its markers made anew.

    Raises:
        UsageError: the document has no markers.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError("no place for the table", details=[f"wanted the lines {BEGIN} and {END}"])
    return f"{head}{BEGIN}\n{markdown(rows)}\n{END}{tail}"


def _cells(row: Row) -> list[str]:
    quote = f": “{row.quote}”" if row.quote else ""
    read = row.retrieved if row.read_at_source else f"{row.retrieved}, not at the source"
    return [
        f"{row.vendor}: {row.family}",
        row.channel,
        title(row),
        f"{row.clause}{quote}",
        f"**{row.verdict}**",
        ", ".join(dict.fromkeys(obligation.kind for obligation in row.obligations)) or "none",
        read,
        f"`{row.row_digest[:SHOWN_DIGEST]}`",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: Sequence[str]) -> int:
    """Write the table into the document that is named.

    Raises:
        UsageError: not exactly one document, or it has no markers.
    """
    if len(arguments) != 1:
        raise UsageError("name the document: python -m overproof.policy.table docs/terms.md")
    path = Path(arguments[0])
    write_atomic(path, updated(path.read_text(encoding="utf-8"), load_rows()).encode())
    note(f"{path}: {len(load_rows())} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
