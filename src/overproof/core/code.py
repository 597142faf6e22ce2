"""Which of our own sources a result depends on, as one digest.

Imports flow one way, so what a stage can run lies in its own package and in those below it: a
change in the report leaves the samples valid, a change in the sampler does not. What a layer runs
of a package that is not below it is listed by file; `tests/unit/test_imports.py` holds the list
to the imports.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import overproof
from overproof.core.digest import sha256_file, sha256_json

LAYERS = ("core", "policy", "data", "teacher", "student", "release")
# `certify` makes the record tree with them (docs/adr/0001); the rest of `trust` makes no stage.
BESIDE = {"data": ("trust/__init__.py", "trust/merkle.py", "trust/rfc6962.py")}


@cache
def source_sha256(layer: str) -> str:
    """SHA-256 of the names and contents of all files of our own that a layer can run.

    Args:
        layer: one of `LAYERS`, lowest first.
    """
    root = Path(overproof.__file__).parent
    return sha256_json({name: sha256_file(root / name) for name in source_files(layer)})


def source_files(layer: str) -> list[str]:
    """All files of a layer's package and those below, and what they run beside them.

    Returns:
        names relative to the package `overproof`.
    """
    root = Path(overproof.__file__).parent
    found: list[str] = []
    for package in LAYERS[: LAYERS.index(layer) + 1]:
        files = (file for file in (root / package).rglob("*") if file.is_file())
        found += [f.relative_to(root).as_posix() for f in files if f.suffix != ".pyc"]
        found += BESIDE.get(package, ())
    return sorted(found)
