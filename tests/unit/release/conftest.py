from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tiny_model

from overproof.core.artifact import Artifact
from overproof.release.targets import TARGETS


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny random student; copy it before you change it."""
    return tiny_model.student(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def builds(tiny_student: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Its GGUF files by target."""
    folder = tmp_path_factory.mktemp("builds")
    paths = {name: folder / f"{name}.gguf" for name in TARGETS}
    for name, path in paths.items():
        TARGETS[name].write(tiny_student.path, path)
    return paths
