from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import trust_release


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> trust_release.Synthetic:
    """A signed release that verifies; copy it before you change it."""
    made = trust_release.make(tmp_path_factory.mktemp("sealed"))
    made.attest()
    return made


@pytest.fixture(scope="session")
def remote(tmp_path_factory: pytest.TempPathFactory) -> trust_release.Synthetic:
    """One whose teacher answered behind an endpoint."""
    made = trust_release.make_remote(tmp_path_factory.mktemp("remote"))
    made.attest()
    return made


@pytest.fixture
def release(sealed: trust_release.Synthetic, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return trust_release.copy(sealed.release, tmp_path / "release")
