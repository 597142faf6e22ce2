"""Numbers as people read them. Every function is pure; units follow the number."""

from __future__ import annotations

import math

NONE = "–"  # shown where there is no number
MINUS = "\N{MINUS SIGN}"
MB, GB = 1_000_000, 1_000_000_000  # decimal, as file sizes are sold and listed
MILLION, BILLION = 1_000_000, 1_000_000_000
LONG = 10 * MILLION  # from here on, the digits of a measured number are noise
MINUTE, HOUR = 60, 3600
SMALLEST = 1e-6  # below it, digits after the point cannot be counted at a glance


def measured(value: float | None) -> str:
    """Three significant digits, thousands grouped, no exponent for everyday sizes."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(float(f"{value:.3g}"))  # rounded first: 9.996 has one digit more than it seems
    if size < SMALLEST:
        return f"{value:.1e}"
    if size >= LONG:
        return f"{measured(value / MILLION)} million" if size < BILLION else f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    return f"{value:,.{digits}f}"


def given(value: float) -> str:
    """A number that somebody chose, such as a bound: as it was written."""
    return f"{value:g}"


def percent(share: float | None) -> str:
    """A share of 1 as a percentage with one decimal."""
    if share is None:
        return NONE
    return f"{100 * share:.1f}%" if math.isfinite(share) else "not finite"


def signed(value: float, *, share: bool = False) -> str:
    """A difference with its sign; of shares in percentage points."""
    text = f"{100 * abs(value):.1f}" if share and math.isfinite(value) else measured(abs(value))
    return text if float(value) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def within(value: float, margin: float) -> str:
    """A number and how far it may be off, which has two digits, such as `1.350 ± 0.031`."""
    if not SMALLEST < margin < LONG:
        return f"{measured(value)} ± {measured(margin)}"
    digits = max(0, 1 - math.floor(math.log10(float(f"{margin:.2g}"))))
    return f"{value:,.{digits}f} ± {margin:,.{digits}f}"


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
    return f"{value / BILLION:,.2f} B" if value >= BILLION else f"{value / MILLION:,.1f} M"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    if round(seconds, 1) < MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"


def times(value: float, base: float) -> str:
    """A value as a multiple of another, such as `2.1×`; a dash where the other is nothing."""
    return f"{measured(value / base)}×" if base > 0 else NONE


def part(value: float, base: float) -> str:
    """A value as a percentage of another; a dash where the other is nothing."""
    return percent(value / base) if base > 0 else NONE
