"""The builds that can be made of a student: one file per target."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from overproof.core.errors import UsageError
from overproof.release.targets import gguf


class Target(Protocol):
    """A build for one engine and one number type.

    Attributes:
        name: as the recipe names it, and the folder of the build.
        file: name of the built file in that folder.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def file(self) -> str: ...  # noqa: D102

    def demand(self, architecture: str, config: Any, tokenizer: dict[str, Any]) -> None:
        """Refuse, before any work, a model that this build cannot be made of.

        Args:
            architecture: name of the model's class in transformers.
            config: the model's configuration.
            tokenizer: the content of its `tokenizer.json`.

        Raises:
            StageError: the engine has no place for this architecture or tokenizer.
        """

    def write(self, model: Path, path: Path) -> None:
        """Write a saved model's build to `path`; equal models give equal bytes.

        Raises:
            StageError: the engine has no place for this architecture or tokenizer.
        """

    def tensor_types(self, path: Path) -> dict[str, int]:
        """How many tensors of each number type the file holds, as read back from it."""


TARGETS: dict[str, Target] = {target.name: target for target in (gguf.Q8_0, gguf.Q4_0, gguf.F16)}


def find(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError(f"no export target {name!r}", details=[f"known: {', '.join(TARGETS)}"])
    return TARGETS[name]
