"""Exact duplicates in a sorted stream."""

from overproof.data.checks.duplicates import mark
from overproof.data.spool import Entry


def test_each_later_one_is_paired_with_the_first() -> None:
    a1, a2, a3 = (Entry("aa", b"", number, b"") for number in (1, 2, 3))
    b = Entry("bb", b"", 4, b"")
    assert list(mark([a1, a2, a3, b])) == [(a1, None), (a2, a1), (a3, a1), (b, None)]
    assert list(mark([])) == []
