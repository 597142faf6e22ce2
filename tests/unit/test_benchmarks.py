from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_starts(script: Path) -> None:
    """They run for minutes, so only people run them whole; what they import must be there."""
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_what_scale_makes_is_what_the_stages_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS[0].parent)
    scale = importlib.import_module("scale")
    scale.prepare(tmp_path, 40)
    for stage in scale.STAGES.values():
        stage(tmp_path, 40)
    certificate = json.loads((tmp_path / "certified/certificate.json").read_bytes())
    assert certificate["accepted"] == 40
    assert len(scale.TrainSet.map(tmp_path / "made").lengths) == 40


def test_a_speed_leaves_the_first_steps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS[0].parent)
    pace = importlib.import_module("_pace")
    run = pace.Run([100, 100, 60, 40], [9.0, 10.0, 11.0, 12.0])
    assert run.speed == 50
    assert run.whole_speed == 25
    began = pace.Pace("a training", 2)
    began.skip(0)
    began.advance(1)
    assert len(began.ends) == 1
    assert list(pace.turns(2, ["a", "b"])) == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
