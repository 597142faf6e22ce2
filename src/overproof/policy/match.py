"""From a model's name to a row: one spelling, then globs, the most specific first."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

BUILTIN = "builtin:"
HUB = "https://huggingface.co/"
# The hub's cache keeps a model as models--OWNER--NAME/snapshots/REVISION.
CACHE_FOLDER = re.compile(r"models--([^/]+?)--([^/]+)")
BRACKET = re.compile(r"\[[^\]]*\]")


def normalise(name: str) -> str:
    """One spelling for a name, path or tag: lower case, `-` between the parts.

    `meta-llama/Llama_3.1`, `llama3.1:8b` and `./models/Llama-3.1-8B/` all lose what
    differs by habit only.
    """
    text = name.strip().removeprefix(BUILTIN).removeprefix(HUB).replace("\\", "/").rstrip("/")
    return re.sub(r"[_:\s]+", "-", cached(text) or text).lower()


def cached(path: str) -> str | None:
    """`OWNER/NAME` of a path into the hub's cache."""
    found = CACHE_FOLDER.search(path)
    return f"{found[1]}/{found[2]}" if found else None


def forms(name: str) -> tuple[str, ...]:
    """The spellings that patterns are tried on: `owner/name` (the last two parts), then `name`.

    Of a path `name` alone: what its folder is called says nothing of the model.
    """
    parts = [part for part in normalise(name).split("/") if part not in ("", ".", "..")]
    if is_path(name):
        return ("".join(parts[-1:]),)
    return tuple(dict.fromkeys(["/".join(parts[-2:]), *parts[-1:]]))


def display(name: str) -> str:
    """How a released file names the teacher: a hub name as it is, a path without its folders.

    A path into the hub's cache is named as the hub names the model. A relative path of two parts
    looks like a hub name; who knows that it is a path gives it whole.
    """
    text = name.strip().removeprefix(BUILTIN).removeprefix(HUB).rstrip("/\\")
    return cached(text) or (text if owner(name) else re.split(r"[/\\]", text)[-1])


def stated(name: str) -> str:
    """How a proof names the teacher: as a recipe does, but a path as `display` does."""
    return name if name.startswith(BUILTIN) else display(name)


def owner(name: str) -> str | None:
    """Who a hub name belongs to, lower case; None for paths, files and bare names."""
    text = name.strip().removeprefix(HUB)
    if is_path(text) or text.count("/") != 1:
        return None
    return text.split("/")[0].lower()


def from_root(path: str) -> str:
    """A path from the root, for nobody to take a folder for a publisher. Raises for no name.

    A link stays what it is called.
    """
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def is_path(name: str) -> bool:
    """Whether a name can only be that of a file or folder; not one in the hub's cache."""
    text = name.strip()
    return not cached(text) and (text.startswith((".", "/", "~")) or text.endswith((".gguf", "/")))


def is_pattern(pattern: str) -> bool:
    """Whether a glob can match a normalised name and says more than "anything"."""
    return bool(weight(pattern)) and normalise(pattern) == pattern


def weight(pattern: str) -> int:
    """How specific a glob is: the characters that it fixes; `[0-9]` counts as one."""
    return len(re.sub(r"[*?]", "", BRACKET.sub("x", pattern)))


def score(patterns: Iterable[str], name: str) -> int:
    """Weight of the most specific pattern that matches the name; 0 if none does."""
    spellings = forms(name)
    return max(
        (
            weight(pattern)
            for pattern in patterns
            if any(fnmatchcase(spelling, pattern) for spelling in spellings)
        ),
        default=0,
    )
