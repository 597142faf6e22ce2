"""Checks of the text itself: the words, the last number, a pattern, JSON of a shape."""

from __future__ import annotations

import importlib
import json
import re
import textwrap
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal, NamedTuple, NoReturn

from pydantic import Field, StrictFloat, StrictInt, field_validator

from overproof.data.records import normalise
from overproof.teacher.checkers.base import Checker, Finding
from overproof.teacher.checkers.numbers import last_number, value_of

OPENING = re.compile(r"^\s*(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$")
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
    answer: StrictInt | StrictFloat | str = Field(
        description="what is right: a number, or one as text, `1/3` too"
    )
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
        if abs(got - wanted) <= Fraction(str(self.tolerance)):
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
        for target in _references(value):
            if not target.startswith("#"):
                raise ValueError(f"$ref {target!r} leads out of the schema")
        return value

    def prepare(self) -> None:
        """See `Checker`."""
        importlib.import_module("jsonschema")

    def check(self, answer: str) -> Finding:
        """See `Checker`."""
        from jsonschema import Draft202012Validator

        try:
            value = json.loads(fenced(answer), parse_constant=_no_number)
        except ValueError as error:
            return Finding(False, f"no JSON: {error}")
        found = next(Draft202012Validator(self.shape).iter_errors(value), None)
        return Finding(True) if found is None else Finding(False, _short(found.message))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (one for key, one in value.items() if key == "$ref" and isinstance(one, str))
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _references(one)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


class Fence(NamedTuple):
    """A block of code in an answer."""

    language: str
    text: str


def fences(answer: str) -> list[Fence]:
    """The code fences of a text (CommonMark 0.31, section 4.5); one that is not closed counts."""
    found, marker, language = list[Fence](), "", ""
    lines = list[str]()
    for line in answer.splitlines():
        if not marker:
            if opening := OPENING.match(line):
                marker, language = opening[1], opening[2].lower()
        elif line.strip().startswith(marker) and not line.strip().strip(marker[0]):
            found.append(Fence(language, textwrap.dedent("\n".join(lines))))
            marker, lines = "", []
        else:
            lines.append(line)
    return [*found, Fence(language, textwrap.dedent("\n".join(lines)))] if marker else found


def fenced(answer: str, *languages: str) -> str:
    """What stands in the last code fence; all of it where there is none.

    Args:
        languages: one of these is taken before any other.
    """
    found = fences(answer)
    named = [fence for fence in found if fence.language in languages]
    return (named or found)[-1].text if found else answer


def _plain(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"


def _not(got: str, wanted: str) -> Finding:
    return Finding(False, f"got {_short(got)!r}, wanted {_short(wanted)!r}")


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
