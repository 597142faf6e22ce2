"""A training run that is killed and run again ends in the bits of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

UNIT = Path(__file__).parents[1] / "unit"
SOURCE = Path(__file__).parents[2] / "src"
# Several seconds, so that a checkpoint a second leaves something to resume, twice.
STEPS = {"the-teachers": 1500, "own": 250, "adapters": 700}
PATIENCE_SECONDS = 180


def start(folder: Path, text: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    places = [SOURCE, UNIT / "teacher", UNIT / "student"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    script = UNIT / "student/training.py"
    command = [sys.executable, str(script), str(folder), str(STEPS[text]), text]
    return subprocess.Popen(command, env=env)


def kill_after(folder: Path, process: subprocess.Popen[bytes], beyond: int) -> int:
    """Kill it as soon as a checkpoint beyond this step is whole; returns that step."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        whole = folder.glob("scratch/step-*/progress.json")
        steps = [int(file.parent.name.split("-")[1]) for file in whole]
        if steps and max(steps) > beyond:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return max(steps)
        assert process.poll() is None, "it ended before a checkpoint was seen"
        time.sleep(0.01)
    process.kill()
    raise AssertionError("no checkpoint in time")


@pytest.mark.parametrize("text", STEPS)
def test_killed_twice_and_resumed_it_ends_in_the_same_bits(tmp_path: Path, text: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, text).wait(PATIENCE_SECONDS) == 0
    first = kill_after(cut, start(cut, text), 0)
    second = kill_after(cut, start(cut, text), first)
    assert first < second < STEPS[text]
    assert not (cut / "weights.pt").exists()
    assert start(cut, text).wait(PATIENCE_SECONDS) == 0
    wanted, got = (json.loads((folder / "facts.json").read_bytes()) for folder in (whole, cut))
    assert got.pop("resumed")
    assert not wanted.pop("resumed")
    assert got == wanted
    weights = [torch.load(folder / "weights.pt") for folder in (whole, cut)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(values, weights[1][name]) for name, values in weights[0].items())
