"""Sorting on disk."""

import hashlib
from pathlib import Path

from overproof.data.spool import Entry, Spool


def entry(text: str, row: bytes = b"{}", number: int = 1) -> Entry:
    return Entry(hashlib.sha256(text.encode()).hexdigest(), row, number, b'{"raw":"a\\tb"}')


def test_entries_come_back_whole_and_in_order(tmp_path: Path) -> None:
    entries = [entry(str(i), b'{"a":"\\t"}', i) for i in range(1000)]
    with Spool(tmp_path / "spool") as spool:
        for item in entries:
            spool.add(item)
        assert list(spool.sorted()) == sorted(entries)


def test_equal_keys_are_ordered_by_content_then_line(tmp_path: Path) -> None:
    first, second, third = entry("a", b"1", 9), entry("a", b"2", 3), entry("a", b"2", 10)
    with Spool(tmp_path / "spool") as spool:
        for item in (third, second, first):
            spool.add(item)
        assert list(spool.sorted()) == [first, second, third]


def test_what_a_killed_run_left_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    with Spool(folder) as spool:
        spool.add(entry("a"))
    with Spool(folder) as spool:
        assert list(spool.sorted()) == []
    assert list(folder.iterdir()) == []
