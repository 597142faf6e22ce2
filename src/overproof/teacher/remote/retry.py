"""When a request is tried again, and how long to wait before: rules, no look at the world."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

TRIED_AGAIN = frozenset({408, 409, 429})  # and every 5xx
FIRST_SECONDS = 0.5  # the first wait is drawn below this; each further bound is twice the last


def is_passing(status: int) -> bool:
    """Whether an HTTP status can be another one a moment later."""
    return status in TRIED_AGAIN or 500 <= status <= 599


def asked_seconds(headers: Mapping[str, str], now: dt.datetime) -> float | None:
    """What `Retry-After` asks for: seconds, or a date (RFC 9110, 10.2.3); None: nothing readable.

    Args:
        headers: with names in lower case.
        now: with a time zone.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    if until.tzinfo is None:  # "-0000" and the obsolete forms: UTC, as all HTTP dates are
        until = until.replace(tzinfo=dt.UTC)
    return max(0.0, math.ceil((until - now).total_seconds()))


def wait_seconds(
    failed: int, asked: float | None, longest: float, uniform: Callable[[float, float], float]
) -> float | None:
    """How long to wait: exponential with full jitter, behind what the server asks for.

    Full jitter: the whole wait is drawn, so that clients which failed together do not come back
    together (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015).

    Args:
        failed: attempts so far, 1 at least.
        longest: a drawn wait is no longer.
        uniform: draws between two numbers.

    Returns:
        None where the server asks for more than the longest wait.
    """
    if asked is not None and asked > longest:
        return None
    bound = min(longest, FIRST_SECONDS * 2.0 ** min(failed - 1, 32))
    return (asked or 0.0) + uniform(0.0, bound)
