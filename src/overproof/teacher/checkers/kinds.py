"""Which kinds of checks there are, and reading one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from overproof.core.errors import UsageError
from overproof.teacher.checkers.base import Checker
from overproof.teacher.checkers.code import Code
from overproof.teacher.checkers.gym import ReasoningGym
from overproof.teacher.checkers.text import Exact, JsonSchema, Number, Regex

_ANY: TypeAdapter[Checker] = TypeAdapter(
    Annotated[
        Exact | Number | Regex | JsonSchema | Code | ReasoningGym, Field(discriminator="kind")
    ]
)


def parse(value: Any) -> Checker:
    """The check that a record's field `check` asks for.

    Raises:
        UsageError: no kind that is known, or a field that is missing, wrong or unknown.
    """
    try:
        return _ANY.validate_python(value)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, row['loc'])) or 'check'}: "
            + row["msg"].removeprefix("Value error, ")
            for row in error.errors()
        ]
        raise UsageError(
            "the field `check` of a record is no check",
            details=lines,
            hint="docs/reasoning.md lists the kinds and their fields",
        ) from error
