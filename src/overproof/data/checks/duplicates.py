"""Exact duplicates: records of the same key, found in a stream sorted by key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from overproof.data.spool import Entry

NAME, VERSION = "duplicates", "1"


def mark(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Entry | None]]:
    """Pair each entry with the earlier one of the same key, or None where it is the first.

    Args:
        entries: sorted by key. Equal keys mean an exact or normalised match only.
    """
    first: Entry | None = None
    for entry in entries:
        if first is None or entry.key != first.key:
            first = entry
            yield entry, None
        else:
            yield entry, first
