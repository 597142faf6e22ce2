"""This machine, measured: real builds of random models in the real engine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from overproof.release import plan, speed
from overproof.student.cost import Hardware

sys.path.insert(0, str(Path(__file__).parents[1] / "teacher"))


def test_this_machine_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_teacher as tiny

    base = tiny.save(tmp_path / "SmolLM2-tiny", layers=4, hidden_size=64, intermediate_size=256)
    monkeypatch.setattr(speed.device, "cores", lambda: 1)
    monkeypatch.setattr(plan, "ROUNDS", 1)
    asked = plan.Config(
        measure=tmp_path / "hardware/here.json", name="here", overrides=(f"student.base={base}",)
    )
    result = plan.run(asked)
    assert Hardware.load(tmp_path / "hardware/here.json") == result.hardware
    found = result.hardware
    assert [one.layers for one in found.shapes] == [4, 4, 2, 2, 1]
    assert {one.vocabulary for one in found.shapes} == {tiny.TOKENS}  # too few to be trimmed
    assert all(one.decode_seconds > 0 and one.peak_bytes > 100_000 for one in found.shapes)
    assert found.machine["cores"] == 1
    assert "written to" in plan.render(result)
    for one in found.shapes:
        guess = found.predict(one.shape).latency_ms / 1000 / one.decode_seconds
        assert abs(guess - 1) <= found.decode_residual + 1e-3
