"""Every vector is accepted or rejected at the step that it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overproof.core.errors import TrustError
from overproof.trust.keys import PublicKey
from overproof.trust.verify import Config, run, verify

VECTORS = Path(__file__).parents[2] / "vectors" / "trust"
NAMES = sorted(path.name for path in VECTORS.iterdir() if (path / "expected.json").is_file())


def unpack(name: str, to: Path) -> Path:
    for file, text in json.loads((VECTORS / name / "release.json").read_text("utf-8")).items():
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        (to / file).write_bytes(text.encode())
    return to


def test_vectors_exist() -> None:
    assert len(NAMES) >= 38
    assert any(not name.endswith("_fail") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_vector(name: str, tmp_path: Path) -> None:
    expected = json.loads((VECTORS / name / "expected.json").read_text())
    release = unpack(name, tmp_path)
    signer = PublicKey.load(VECTORS / "signer.pub")
    if not name.endswith("_fail"):
        assert verify(release, signer).outcome == expected["outcome"]
        return
    with pytest.raises(TrustError) as caught:
        verify(release, signer)
    assert caught.value.step == expected["step"], str(caught.value)
    assert expected["names"] in str(caught.value)
    assert caught.value.render().startswith(f"error: step {expected['step']}: ")
    verdict = run(Config(release, VECTORS / "signer.pub", json=True))
    assert verdict.outcome == "rejected"
    assert verdict.exit_code == 3
    assert verdict.failure is not None
    assert verdict.failure.step == expected["step"]
    assert [step.number for step in verdict.steps] == list(range(1, expected["step"]))
