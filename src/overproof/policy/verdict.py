"""Verdicts and their order: strictest first, combined by `meet`."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """What terms say of one use, from the strictest to the most liberal.

    `deny` stands below `unknown`: both stop a run, but a clause that was read is the better
    reason to name when one teacher is forbidden and another is not known.
    """

    DENY = "deny"
    UNKNOWN = "unknown"
    NEEDS_APPROVAL = "needs_approval"
    ALLOW_WITH = "allow_with"
    ALLOW = "allow"

    @property
    def rank(self) -> int:
        """Place in the order, 0 for the strictest."""
        return list(Verdict).index(self)

    @property
    def permits(self) -> bool:
        """Whether a run may go on: unknown does not."""
        return self in (Verdict.ALLOW, Verdict.ALLOW_WITH)


def meet(verdicts: Iterable[Verdict]) -> Verdict:
    """The strictest of several verdicts; `allow` of none (the identity)."""
    return min(verdicts, key=lambda verdict: verdict.rank, default=Verdict.ALLOW)
