"""Numbers as people read them. Every function is pure; units follow the number."""

from __future__ import annotations

import math

NONE = "–"  # shown where there is no number
MB, GB = 1_000_000, 1_000_000_000  # decimal, as file sizes are sold and listed
MINUTE, HOUR = 60, 3600


def measured(value: float | None) -> str:
    """Three significant digits, thousands grouped, no exponent for everyday sizes."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.0001:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """A share of 1 as a percentage with one decimal."""
    if share is None:
        return NONE
    return f"{100 * share:.1f} %" if math.isfinite(share) else "not finite"


def count(value: int | None) -> str:
    """A whole number, thousands grouped."""
    return NONE if value is None else f"{value:,}"


def size(value: int | None) -> str:
    """Bytes as MB or GB."""
    if value is None:
        return NONE
    if value >= GB:
        return f"{value / GB:,.2f} GB"
    return f"{value / MB:,.1f} MB" if value >= MB else f"{value / 1000:,.1f} kB"


def parameters(value: int) -> str:
    """Parameters in millions or billions."""
    if value >= 1_000_000_000:
        return f"{value / 1_000_000_000:,.2f} B"
    return f"{value / 1_000_000:,.1f} M"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    if seconds < MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"


def ratio(big: float, small: float) -> str:
    """How many times larger, such as `2.1×`; a dash where there is nothing to divide by."""
    return f"{measured(big / small)}×" if small > 0 and math.isfinite(big) else NONE
