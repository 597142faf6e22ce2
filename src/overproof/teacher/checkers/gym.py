"""The scorers of reasoning-gym, for problems that it made."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from overproof.core.errors import UsageError
from overproof.core.section import Fraction
from overproof.teacher.checkers.base import Checker, Finding
from overproof.teacher.checkers.sandbox import demand_no_network


class ReasoningGym(Checker):
    """What the scorer of a reasoning-gym task gives the answer reaches a mark."""

    kind: Literal["reasoning-gym"]
    task: str = Field(description="the task's name there, such as chain_sum")
    entry: dict[str, Any] = Field(description="the problem, as the task made it")
    least: Fraction = Field(1.0, description="lowest score that counts as right")

    def prepare(self) -> None:
        """See `Checker`; some scorers run parts of an answer as Python."""
        demand_no_network()
        self._scorer()

    def check(self, answer: str) -> Finding:
        """See `Checker`."""
        demand_no_network()
        score = float(self._scorer()(answer=answer, entry=self.entry))
        if score >= self.least:
            return Finding(True)
        return Finding(False, f"scored {score:g}, wanted {self.least:g}")

    def _scorer(self) -> Any:
        try:
            from reasoning_gym import get_score_answer_fn
        except ImportError as error:
            raise UsageError(
                "checks of kind `reasoning-gym` need the package reasoning-gym",
                hint="pip install 'overproof[reasoning]'",
            ) from error
        try:
            return get_score_answer_fn(self.task)
        except (ValueError, KeyError) as error:
            raise UsageError(f"reasoning-gym has no task {self.task!r}") from error
