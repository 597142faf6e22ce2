"""The real command with other signals and another divergence than the demo's, and on-policy."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from test_pipeline import distill, overproof, verify

from overproof.student import steplog

pytestmark = pytest.mark.slow
DATA = Path(__file__).parents[2] / "datasets/support"
RECORDS = {"train": 1000, "heldout": 200}
EXACT = (
    "signals={kind: exact, prompts: false, while_sampling: true}",
    "train.divergence={kind: jsd, beta: 0.3}",
    "train.steps=8",
    "train.on_policy={warm_start: 0.25, ahead: 2}",
    "train.controls=[]",
)
SAMPLED = ("signals={kind: sampled}", "train.divergence={kind: jsd}")


def first_records(folder: Path) -> list[str]:
    """Settings that take the beginning of the demo's data; `test_pipeline` certifies all of it."""
    for part, count in RECORDS.items():
        with (DATA / f"{part}.jsonl").open(encoding="utf-8") as rows:
            (folder / f"{part}.jsonl").write_text("".join(islice(rows, count)), encoding="utf-8")
    return [f"data.{part}={folder / part}.jsonl" for part in RECORDS]


def test_exact_signals_another_divergence_and_own_text(tmp_path: Path) -> None:
    assert overproof("keys", "new", "tester", "--dir", tmp_path / "keys").returncode == 0
    settings = (*EXACT, *first_records(tmp_path))
    done = overproof(*distill(tmp_path / "out", tmp_path / "keys/tester.key", *settings))
    assert done.returncode == 0, done.stderr
    release = tmp_path / "out/release"
    assert verify(tmp_path, release).returncode == 0
    report = json.loads((release / "report.json").read_bytes())
    assert report["controls"] == []
    page = (release / "report.html").read_text()
    assert "Its last hidden states at each position of its answers were cached" in page
    assert "the generalised Jensen-Shannon divergence (beta 0.3)" in page
    assert (
        "learned from the student&#39;s own answers to the same prompts" in page
        or "learned from the student’s own answers" in page
    )
    log = steplog.read(release / "model" / steplog.FILE)
    steps = len(log) - 2
    own = [line["step"] for line in log if "said" in line]
    assert steps == 8
    assert own == [3, 5, 7]
    assert all(0 < line["loss"] < 20 for line in log if line.get("step") in own)
    student = json.loads((tmp_path / "out/stages/student/artifact.json").read_bytes())
    assert "teacher" in json.dumps(student["inputs"])
    signals = tmp_path / "out/stages/signals"
    assert set(json.loads((signals / "signals.json").read_bytes())["made_of"]) == {
        "teacher", "tokenizer", "chat_template", "corpus", "sampler", "signals",
    }  # fmt: skip


def test_draws_with_another_divergence_than_forward_kl_are_refused(tmp_path: Path) -> None:
    done = overproof(*distill(tmp_path / "out", tmp_path / "no.key", *SAMPLED))
    assert done.returncode == 2
    assert "goes with train.divergence.kind `forward-kl` alone, got `jsd`" in done.stderr
    assert not (tmp_path / "out").exists()
