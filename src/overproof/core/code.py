"""Which of our own sources a result depends on, as one digest.

Imports flow one way, so what a stage can run lies in its own package and in those below it: a
change in the report leaves the samples valid, a change in the sampler does not.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import overproof
from overproof.core.digest import sha256_file, sha256_json

LAYERS = ("core", "policy", "data", "teacher", "student", "release")


@cache
def source_sha256(layer: str) -> str:
    """SHA-256 of the names and contents of all files of a layer's package and those below.

    Args:
        layer: one of `LAYERS`, lowest first.
    """
    root = Path(overproof.__file__).parent
    found: dict[str, str] = {}
    for package in LAYERS[: LAYERS.index(layer) + 1]:
        for file in sorted((root / package).rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                found[file.relative_to(root).as_posix()] = sha256_file(file)
    return sha256_json(found)
