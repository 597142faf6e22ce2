"""One conversation with the teacher, in its own tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One conversation: the prompt's tokens after the shared prefix, and the answer's.

    Attributes:
        teacher: number of the teacher whose answer it is; the first is 0.
    """

    key: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    teacher: int = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and answer in one."""
        return self.prompt + self.answer

    def targets(self, *, prompt: bool = False) -> range:
        """Positions (of `tokens`) whose successor belongs to the answer.

        Args:
            prompt: or to the prompt: every position but the last.
        """
        return range(0 if prompt else len(self.prompt) - 1, len(self.tokens) - 1)
