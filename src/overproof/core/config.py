"""Reading a recipe: one YAML file, validated by frozen models, unknown keys refused by name."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from overproof.core.errors import UsageError
from overproof.core.recipe import Recipe


def resource_folders() -> list[Path]:
    """Folders that hold `recipes/` and `datasets/`: the installed package, then the checkout."""
    package = Path(__file__).resolve().parents[1]
    return [package / "share", package.parents[1]]


def find_recipe(name: str) -> Path:
    """A recipe by path, or by the name of one that ships with Overproof.

    Raises:
        UsageError: there is none; the message lists those that exist.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if path.is_file():
            return path
        raise UsageError(f"no recipe at {path}")
    known: dict[str, Path] = {}
    for folder in reversed(resource_folders()):
        known |= {file.stem: file for file in sorted((folder / "recipes").glob("*.yaml"))}
    if name in known:
        return known[name]
    raise UsageError(
        f"no recipe named {name!r}",
        details=[f"known: {', '.join(sorted(known)) or 'none'}"],
        hint=_nearest(name, known) or "give a path to a .yaml file",
    )


def find_data(name: str, recipe: Path | None) -> Path:
    """A data file: as given, beside the recipe, or among those that ship with Overproof.

    Raises:
        UsageError: there is none; the message lists the places that were tried.
    """
    bases = [Path(), *([recipe.parent] if recipe else []), *resource_folders()]
    tried = [base / name for base in bases]
    for path in tried:
        if path.is_file():
            return path
    raise UsageError(f"no data file {name!r}", details=[f"tried {path}" for path in tried])


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice; PyYAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See `yaml.SafeLoader`."""
        counts = Counter(key.value for key, _ in node.value)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        path: the YAML file.
        overrides: `a.b=value` texts; values are read as YAML.

    Raises:
        UsageError: no YAML, an unknown key (the nearest known one is named), a wrong value.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML", details=str(error).splitlines()) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} holds {type(raw).__name__}, wanted a mapping of sections")
    return _validated(raw, overrides, str(path))


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Another recipe, as `--set` makes it of this one.

    Raises:
        UsageError: an unknown key, a wrong value.
    """
    return _validated(recipe.model_dump(mode="json"), overrides, recipe.name)


def _validated(raw: dict[str, Any], overrides: Sequence[str], name: str) -> Recipe:
    for override in overrides:
        _apply(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, name) from error


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"--set {override!r} has no value", hint="write it as section.field=value")
    node = raw
    for part in parts[:-1]:
        if node.get(part) is None:  # a section that is left out
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UsageError(f"--set {override!r}: {part!r} is no section")
    try:
        node[parts[-1]] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"--set {override!r}: the value is not YAML") from error


def _explain(error: ValidationError, name: str) -> UsageError:
    lines, hint = [], None
    for row in error.errors():
        place, section = _follow(row["loc"])
        if row["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key")
            hint = hint or _nearest(str(row["loc"][-1]), section.model_fields)
        elif row["type"] == "missing":
            lines.append(f"{place}: missing")
        elif row["type"] == "value_error":  # fields or sections that do not go together
            message = row["msg"].removeprefix("Value error, ")
            lines.append(f"{place}: {message}" if place else message)
        else:
            lines.append(f"{place}: got {row['input']!r}; {row['msg'][0].lower()}{row['msg'][1:]}")
    return UsageError(
        f"recipe {name} is not valid",
        details=lines,
        hint=hint or "overproof distill --print-schema lists every key",
    )


def _follow(place: Iterable[str | int]) -> tuple[str, type[BaseModel]]:
    """A place in the recipe as it is written there, and the section that it lies in.

    Where a section has kinds, pydantic's place names the kind after the section.
    """
    model: type[BaseModel] = Recipe
    shown, kinds = list[str](), dict[str, type[BaseModel]]()
    for part in map(str, place):
        if part in kinds:
            model = kinds[part]
            continue
        shown.append(part)
        field = model.model_fields.get(part)
        sections = _sections(field.annotation) if field else []
        kinds = {
            get_args(one.model_fields["kind"].annotation)[0]: one
            for one in sections
            if "kind" in one.model_fields
        }
        if sections and not kinds:
            (model,) = sections
    return ".".join(shown), model


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Those that a field may hold: one, one or none, or one of several kinds."""
    options = get_args(annotation) or (annotation,)
    return [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]


def _nearest(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else None
