"""The models that a student comes from: whom it learns from, and what it is cut from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from overproof.core.artifact import Input, Resource
from overproof.core.contract import BASE, TEACHER
from overproof.core.errors import UsageError
from overproof.core.recipe import Recipe
from overproof.teacher import files, local
from overproof.teacher.remote import stage as remote
from overproof.teacher.routing import role
from overproof.teacher.tokens import other_tokens


@dataclass(frozen=True)
class Origin:
    """A model that a student comes from.

    Attributes:
        name: as the recipe has it.
        place: its folder or file, from the root; None: behind an endpoint.
        input: what stands for it in every proof: a resource, or the stage that made it.
    """

    name: str
    place: Path | None
    input: Input

    @property
    def resource(self) -> Resource:
        """What a report calls it."""
        if isinstance(self.input, Resource):
            return self.input
        return Resource(TEACHER, self.name, f"stage:{self.input.path.name}", self.input.sha256)

    def load(self) -> local.Teacher:
        """See `local.load`; its files are known already.

        Raises:
            UsageError: it is behind an endpoint.
        """
        if self.place is None:
            raise UsageError(f"{self.name} is behind an endpoint: it has no weights here")
        return local.read(self.name, self.place, self.resource)


@dataclass(frozen=True)
class Origins:
    """All of them.

    Attributes:
        base: what the student is cut from, where that is not the teacher. A teacher behind an
            endpoint has no weights: there always is one then.
        others: more teachers.
    """

    teacher: Origin
    base: Origin | None = None
    others: tuple[Origin, ...] = ()

    @functools.cached_property
    def apart(self) -> bool:
        """Whether the base has other tokens than a teacher that is here; reads both tokenizers."""
        if self.base is None or self.teacher.place is None or self.base.place is None:
            return False
        each = ((self.teacher.name, self.teacher.place), (self.base.name, self.base.place))
        return bool(other_tokens(*(local.tokenizer_state(*one) for one in each)))

    @property
    def teachers(self) -> tuple[Origin, ...]:
        """In the order of their numbers."""
        return (self.teacher, *self.others)

    @property
    def each(self) -> list[Origin]:
        """The teachers first."""
        return [*self.teachers, *([self.base] if self.base else [])]

    @property
    def roles(self) -> dict[str, Input]:
        """What stands for each, by its role in a stage."""
        found = {role(TEACHER, which): one.input for which, one in enumerate(self.teachers)}
        return found | ({BASE: self.base.input} if self.base else {})

    @property
    def tokens_of(self) -> dict[str, Input]:
        """The models in whose tokens the answers are, by role: the teachers, if they are here."""
        here = self.here.input
        return {here.kind: here} if self.remote else self.taught_by

    @property
    def taught_by(self) -> dict[str, Input]:
        """The teachers by role, wherever they are."""
        return {name: one for name, one in self.roles.items() if name != BASE}

    @property
    def places(self) -> list[tuple[Path | None, Input]]:
        """Of each where it is, and what stands for it."""
        return [(one.place, one.input) for one in self.each]

    @property
    def remote(self) -> Resource | None:
        """The teacher, if it is behind an endpoint."""
        return self.teacher.resource if self.teacher.place is None else None

    @property
    def here(self) -> Origin:
        """The model in whose tokens and template the answers are: the teacher, if it is here."""
        return self.base if self.base and self.remote else self.teacher

    @property
    def speaker(self) -> Origin:
        """The model whose tokens and template the student has."""
        return self.base if self.base and self.apart else self.here

    @property
    def other(self) -> Origin | None:
        """The base, where the answers are in the tokens of another model."""
        return None if self.base is self.here else self.base


class Loader:
    """Loads teachers, and keeps the last one."""

    def __init__(self, read: Callable[[int], local.Teacher]) -> None:
        self._read = functools.lru_cache(maxsize=1)(read)

    def __call__(self, which: int = 0) -> local.Teacher:
        """See `routing.Load`."""
        return self._read(which)

    def clear(self) -> None:
        """Keep none."""
        self._read.cache_clear()


def find(recipe: Recipe) -> Origins:
    """Identify them, without loading or asking any.

    Raises:
        what `files.identify` raises.
    """
    name, base = recipe.teacher.model, recipe.student.base
    if recipe.teacher.endpoint is not None:
        teacher = Origin(name, None, remote.identify(recipe))
    else:
        teacher = Origin(name, *files.identify(name))
    others = tuple(
        Origin(other.model, *files.identify(other.model)) for other in recipe.teacher.others
    )
    if base is None:
        return Origins(teacher, None, others)
    place, resource = files.identify(base)
    if resource.sha256 == teacher.resource.sha256:  # the same model under another name or path
        return Origins(teacher, None, others)
    origin = Origin(base, place, replace(resource, kind=BASE))
    return Origins(teacher, origin, others)
