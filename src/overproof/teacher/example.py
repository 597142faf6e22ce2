"""One conversation with the teacher, in its own tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One conversation: the prompt's tokens after the shared prefix, and the answer's."""

    key: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and answer in one."""
        return self.prompt + self.answer

    @property
    def targets(self) -> range:
        """Positions (of `tokens`) whose successor belongs to the answer."""
        return range(len(self.prompt) - 1, len(self.tokens) - 1)
