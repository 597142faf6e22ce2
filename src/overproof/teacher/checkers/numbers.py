"""Numbers as people and models write them, read exactly."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

MINUS = "[-+\u2212\u2013]"
DIGITS = r"(?:\d{1,3}(?:,\d{3})++(?![\d,])|\d++)"
# Whole, with thousands in threes, or with decimals; an exponent; a denominator; a whole before it.
NUMBER = re.compile(
    rf"(?<![^\W_]|[.,/])(?:{MINUS}[ ]?(?=[\d.]))?"
    rf"(?:\d++[ ](?=\d++/\d))?(?:{DIGITS}(?:\.\d++)?+|\.\d++)"
    r"(?:[eE][-+]?\d{1,3}(?!\d))?+(?:[ ]?/[ ]?\d++(?![\d.]))?+(?!\d|[.,]\d|[eE][-+]?\d|[ ]?/[ ]?\d)"
)
FRAC = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)(\d))")
DROPPED = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\^\s*(?:\{[^{}]*\}|\w)|\\[,;:! ]|\\[%$]")
BOX = "\\boxed{"
MOST_DIGITS = 400  # a number of a thousand digits is no answer


def last_number(answer: str) -> Fraction | None:
    """The last number of a text; of what is boxed last, if anything is."""
    box = boxed(answer)
    text = plain(answer if box is None else box)
    found = list(NUMBER.finditer(text))
    return value_of(found[-1][0]) if found else None


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{}, braces inside it balanced."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    depth, begin = 1, start + len(BOX)
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[begin:at]
    return text[begin:]


def plain(text: str) -> str:
    """TeX's fractions as `a/b`; its separators, units and powers left out."""
    text = FRAC.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]} ", text)
    return DROPPED.sub("", text.replace("{,}", ","))


def value_of(text: str) -> Fraction | None:
    """A number as people write it, exactly; None: it is none."""
    if not NUMBER.fullmatch(text.strip()):
        return None
    text = re.sub("[\u2212\u2013]", "-", text.strip().replace(",", ""))
    sign, text = (-1, text[1:].strip()) if text.startswith("-") else (1, text.lstrip("+ "))
    whole, space, rest = text.partition(" ")
    try:
        if space and "/" in rest and "/" not in whole and not rest.startswith("/"):
            return sign * (_decimal(whole) + _ratio(rest))
        return sign * _ratio(text)
    except (InvalidOperation, OverflowError, ValueError, ZeroDivisionError):
        return None


def _ratio(text: str) -> Fraction:
    top, _, bottom = text.partition("/")
    return _decimal(top) / Fraction(int(bottom) if bottom else 1)


def _decimal(text: str) -> Fraction:
    value = Decimal(text.strip())
    if abs(value.adjusted()) > MOST_DIGITS:
        raise OverflowError(text)
    return Fraction(value)
