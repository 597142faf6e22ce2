"""Checks of the text itself: the words, the last number, a pattern, JSON of a shape."""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, field_validator

from overproof.data.records import normalise
from overproof.teacher.checkers.base import Checker, Finding

# A number as people write it: sign, thousands in threes, decimals or a whole denominator.
NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d{1,3})?(?:\s*/\s*\d+)?(?![\w])",
    re.IGNORECASE,
)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
FENCED = re.compile(r"```(?:\w+)?[ \t]*\n(.*?)```", re.DOTALL)
SHOWN = 60  # characters of an answer in a message


class Exact(Checker):
    """The answer is this text, but for white space."""

    kind: Literal["exact"]
    answer: str = Field(description="what is right")
    ignore_case: bool = Field(False, description="letters' case does not count")

    def check(self, answer: str) -> Finding:
        """See `Checker`."""
        got, wanted = normalise(answer), normalise(self.answer)
        if self.ignore_case:
            got, wanted = got.casefold(), wanted.casefold()
        return Finding(True) if got == wanted else _not(got, wanted)


class Number(Checker):
    """The last number of the answer is this one; in \\boxed{} if it has that."""

    kind: Literal["number"]
    answer: float | str = Field(description="what is right: a number, or one as text, `1/3` too")
    tolerance: float = Field(0.0, ge=0.0, allow_inf_nan=False, description="difference allowed")

    @field_validator("answer")
    @classmethod
    def _is_a_number(cls, value: float | str) -> float | str:
        if value_of(str(value)) is None:
            raise ValueError(f"{value!r} is no number")
        return value

    def check(self, answer: str) -> Finding:
        """See `Checker`."""
        wanted = value_of(str(self.answer))
        got = last_number(answer)
        if got is None or wanted is None:
            return Finding(False, f"no number in {_short(answer)!r}, wanted {self.answer}")
        if abs(got - wanted) <= Fraction(self.tolerance):
            return Finding(True)
        return Finding(False, f"got {_plain(got)}, wanted {self.answer}")


class Regex(Checker):
    """A pattern is found in the answer."""

    kind: Literal["regex"]
    pattern: str = Field(description="a regular expression of Python's")
    whole: bool = Field(False, description="it must match all of the answer")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return value

    def check(self, answer: str) -> Finding:
        """See `Checker`."""
        search = re.fullmatch if self.whole else re.search
        return Finding(True) if search(self.pattern, answer) else _not(answer, self.pattern)


class JsonSchema(Checker):
    """The answer is JSON, in a code fence or alone, that fits a schema."""

    kind: Literal["json-schema"]
    shape: dict[str, Any] = Field(alias="schema", description="JSON Schema, draft 2020-12")

    @field_validator("shape")
    @classmethod
    def _is_a_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(value)
        except SchemaError as error:
            raise ValueError(f"no JSON Schema: {error.message}") from error
        return value

    def check(self, answer: str) -> Finding:
        """See `Checker`."""
        from jsonschema import Draft202012Validator

        try:
            value = json.loads(fenced(answer))
        except ValueError as error:
            return Finding(False, f"no JSON: {error}")
        found = next(Draft202012Validator(self.shape).iter_errors(value), None)
        return Finding(True) if found is None else Finding(False, _short(found.message))


def fenced(answer: str) -> str:
    """What stands in the last code fence; all of it where there is none."""
    found = FENCED.findall(answer)
    return str(found[-1]) if found else answer


def last_number(answer: str) -> Fraction | None:
    """The last number of a text; of what is boxed, if anything is."""
    boxed = BOXED.findall(answer)
    found = NUMBER.findall(boxed[-1] if boxed else answer)
    return value_of(found[-1]) if found else None


def value_of(text: str) -> Fraction | None:
    """A number as people write it, exactly; None: it is none."""
    top, _, bottom = text.replace(",", "").replace("\u2212", "-").partition("/")
    try:
        value = Decimal(top.strip())
        if not value.is_finite() or abs(value.adjusted()) > 400:  # a thousand digits are no answer
            return None
        return Fraction(value) / Fraction(int(bottom) if bottom.strip() else 1)
    except (InvalidOperation, ValueError, ZeroDivisionError):
        return None


def _plain(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"


def _not(got: str, wanted: str) -> Finding:
    return Finding(False, f"got {_short(got)!r}, wanted {_short(wanted)!r}")


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
