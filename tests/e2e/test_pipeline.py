"""The real command with the real teacher and tiny numbers: from records to a proved release."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_teacher as tiny

from overproof import pipeline

SOURCE = Path(__file__).parents[2] / "src"
SETTINGS = (
    "sample.prompts=60",
    "sample.heldout_prompts=12",
    "sample.max_new_tokens=16",
    "train.steps=3",
    "train.sequences=2",
    "student.importance=angular",
    "export.min_agreement=0.3",
    "export.max_kl=0.5",
)
PATIENCE_SECONDS = 400
Done = subprocess.CompletedProcess[str]
pytestmark = pytest.mark.slow


def command(*arguments: str | Path) -> list[str]:
    code = "from overproof.cli import main; main()"
    return [sys.executable, "-W", "default", "-c", code, *map(str, arguments)]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OVERPROOF")}
    return {**kept, "PYTHONPATH": str(SOURCE), "COLUMNS": "100"}


def overproof(*arguments: str | Path) -> Done:
    done = subprocess.run(
        command(*arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def distill(out: Path, key: Path, *more: str) -> list[str | Path]:
    chosen = [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
    return ["distill", "support", "--out", out, "--key", key, *chosen]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in `out`, its key in `keys`; made once, with a second run beside it."""
    folder = tmp_path_factory.mktemp("pipeline")
    made = overproof("keys", "new", "tester", "--dir", folder / "keys")
    assert made.returncode == 0, made.stderr
    arguments = distill(folder / "out", folder / "keys/tester.key")
    first = subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stderr is not None
        lines = [first.stderr.readline()]  # the first stage is done: the run holds the folder
        (folder / "second.json").write_text(json.dumps(_refusal(arguments)))
        lines.append(first.communicate(timeout=PATIENCE_SECONDS)[1])
    finally:
        first.kill()
    log = "".join(lines)
    assert first.returncode == 0, log
    assert "Traceback" not in log
    (folder / "log.txt").write_text(log)
    return folder


def _refusal(arguments: list[str | Path]) -> dict[str, object]:
    second = overproof(*arguments)
    return {"code": second.returncode, "text": second.stderr}


@pytest.fixture
def release(place: Path, tmp_path: Path) -> Path:
    """A copy of the release, to be damaged."""
    return Path(shutil.copytree(place / "out/release", tmp_path / "release"))


def verify(place: Path, release: Path) -> Done:
    return overproof("verify", release, "--signer", place / "keys/tester.pub")


def test_a_second_run_in_the_same_folder_is_refused(place: Path) -> None:
    second = json.loads((place / "second.json").read_bytes())
    assert second["code"] == 1
    assert "another run is working in" in second["text"]
    assert "--out" in second["text"]


def test_every_stage_says_one_line_when_it_is_done(place: Path) -> None:
    log = (place / "log.txt").read_text()
    for stage in ("heldout", "train", "samples", "signals", "initial", "student", "control"):
        assert log.count(f"{stage}: done in") == 1


def test_the_release_is_whole(place: Path) -> None:
    release = place / "out/release"
    for name in ("report.json", "report.html", "README.md", "model/model.safetensors", "proof"):
        assert (release / name).exists(), name
    report = json.loads((release / "report.json").read_bytes())
    control = report["controls"][0]["quality"]
    for arm in (report["teacher"], report["student"], report["untrained"], control):
        for measure in ("kl_nats_per_token", "top1_agreement", "perplexity"):
            interval = arm[measure]
            assert interval["low"] <= interval["value"] <= interval["high"]
    assert report["teacher"]["kl_nats_per_token"]["value"] == 0
    assert report["student"]["kl_nats_per_token"]["value"] > 0


def test_it_verifies(place: Path) -> None:
    done = verify(place, place / "out/release")
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_pinned_signer_the_signer_is_unknown(place: Path) -> None:
    done = overproof("verify", place / "out/release")
    assert done.returncode == 3
    assert "signer unknown" in done.stdout + done.stderr


def test_the_exported_model_answers(place: Path) -> None:
    done = overproof("ask", place / "out/release", "Where is my parcel?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_flipped_byte_in_the_model_is_rejected_by_step_and_file(
    place: Path, release: Path
) -> None:
    _flip(release / "model/model.safetensors")
    done = verify(place, release)
    assert done.returncode == 3
    assert "error: step 4: " in done.stderr
    assert "model/model.safetensors" in done.stderr


def test_a_flipped_byte_in_a_bundle_is_rejected_by_step_and_file(
    place: Path, release: Path
) -> None:
    bundle = sorted((release / "proof").glob("*.sigstore.json"))[0]
    _flip(bundle)
    done = verify(place, release)
    assert done.returncode == 3
    assert "error: step " in done.stderr
    assert bundle.name in done.stderr


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_second_run_keeps_every_stage(place: Path) -> None:
    before = (place / "out/release/report.json").read_bytes()
    done = overproof(*distill(place / "out", place / "keys/tester.key"))
    assert done.returncode == 0, done.stderr
    assert "done in" not in done.stderr
    assert (place / "out/release/report.json").read_bytes() == before


def test_a_second_run_loads_no_teacher(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(name: str, *_: object) -> None:
        raise AssertionError(f"{name} was loaded, though every stage is kept")

    monkeypatch.setattr("overproof.teacher.local.read", loaded)
    settings = pipeline.Config(
        out=place / "out", key=place / "keys/tester.key", overrides=tuple(SETTINGS)
    )
    assert pipeline.run(settings).exit_code == 0


def test_a_teacher_whose_terms_forbid_it_is_refused_before_it_speaks(
    place: Path, tmp_path: Path
) -> None:
    denied = tiny.save(tmp_path / "Llama-2-7b-chat")
    out = tmp_path / "out"
    done = overproof(*distill(out, place / "keys/tester.key", f"teacher.model={denied}"))
    assert done.returncode == 3, done.stderr
    assert "clause" in done.stderr
    assert "what would allow it" in done.stderr
    assert not (out / "release").exists()
    assert not list(out.rglob("journal.jsonl"))
    assert not list(out.rglob("*samples*"))
