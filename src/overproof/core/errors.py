"""The one tree of errors. A message says what happened, what was got and wanted, and what to do.

Exit codes: 0 done, 1 failed, 2 usage, 3 checked and rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class OverproofError(Exception):
    """Base of every error that Overproof raises on purpose.

    Args:
        what: one sentence, what happened.
        details: lines that name files, fields, what was got and what was wanted.
        hint: what the reader can do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, details: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.details = tuple(details)
        self.hint = hint

    def render(self) -> str:
        """The message as printed on stderr, several lines, no trailing newline."""
        lines = [f"error: {self.what}", *(f"  {detail}" for detail in self.details)]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same for machines."""
        said = {"message": self.what, "details": list(self.details), "hint": self.hint}
        return {"error": said, "exit_code": self.exit_code}

    def __str__(self) -> str:
        return self.render().removeprefix("error: ")


class UsageError(OverproofError):
    """The caller asked for something that cannot be done as asked: a flag, a recipe, a path."""

    exit_code = 2


class StageError(OverproofError):
    """The world got in the way: a full disk, a missing package, a file that cannot be read."""

    exit_code = 1


class PolicyError(OverproofError):
    """Not permitted: a licence or a teacher's terms say no."""

    exit_code = 3


class TrustError(OverproofError):
    """Data that cannot be trusted.

    Attributes:
        step: number of the verification step that failed; 0 where no numbered list applies.
    """

    exit_code = 3

    def __init__(
        self, what: str, *, step: int = 0, details: Sequence[str] = (), hint: str | None = None
    ) -> None:
        super().__init__(what, details=details, hint=hint)
        self.step = step

    def render(self) -> str:
        """The message with the number of the failed step in front."""
        text = super().render()
        return text.replace("error: ", f"error: step {self.step}: ", 1) if self.step else text


def install(extra: str = "") -> str:
    """The command that installs Overproof with an extra; the package is on no index yet."""
    return f"in the checkout: pip install -c constraints.txt -e '.{f'[{extra}]' if extra else ''}'"
