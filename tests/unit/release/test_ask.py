from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from overproof.core.artifact import Artifact
from overproof.core.errors import UsageError
from overproof.release import ask
from overproof.release.ask import Config, render, run
from overproof.release.header import Sampling, read_header
from overproof.release.targets import TARGETS


@pytest.fixture
def release(builds: dict[str, Path], tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "release"
    (folder / "model").mkdir(parents=True)
    for name, path in builds.items():
        (folder / "export" / name).mkdir(parents=True)
        shutil.copy(path, folder / "export" / name / "model.gguf")
    (folder / "report.json").write_text(json.dumps({"system": "Be kind."}))
    return folder


def test_answer_is_streamed_and_returned(release: Path, capfd) -> None:
    result = run(Config(release=release, question="Hi?", max_tokens=8), ask.to_stdout)
    printed = capfd.readouterr()
    assert printed.out == result.answer
    assert printed.err == ""
    assert result.completion_tokens <= 8
    assert result.build == "gguf-q8_0"
    assert result.system == "Be kind."
    assert render(result) == result.answer.strip()
    assert json.loads(json.dumps(result.to_json()))["question"] == "Hi?"


def test_the_system_message_reaches_the_model(release: Path) -> None:
    kind = run(Config(release=release, question="Hi?", max_tokens=8))
    (release / "report.json").unlink()
    plain = run(Config(release=release, question="Hi?", max_tokens=8))
    assert plain.system is None
    assert plain.prompt_tokens != kind.prompt_tokens


def test_it_draws_as_the_file_advises(
    release: Path, tiny_student: Artifact, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_student.path, tmp_path / "model"))
    file = model / "generation_config.json"
    advice = {"do_sample": True, "temperature": 5.0, "top_k": 50, "top_p": 0.9}
    file.write_text(json.dumps({**json.loads(file.read_text()), **advice}))
    build = release / "export" / "gguf-q8_0" / "model.gguf"
    TARGETS["gguf-q8_0"].write(model, build)
    assert read_header(build).sampling == Sampling(5.0, 50, pytest.approx(0.9))

    def answer(**settings: float) -> str:
        return run(Config(release=release, question="Hi?", max_tokens=12, **settings)).answer

    assert answer(seed=1) == answer(seed=1) != answer(seed=2)
    assert answer(seed=1, temperature=0) == answer(seed=2, temperature=0)


def test_the_other_build_answers_where_the_first_is_missing(release: Path) -> None:
    shutil.rmtree(release / "export" / "gguf-q8_0")
    result = run(Config(release=release, question="Hi?", max_tokens=2))
    assert result.build == "gguf-f16"


def test_wrong_places_are_explained(release: Path, tmp_path: Path) -> None:
    for folder in (release.parent, release / "export"):
        with pytest.raises(UsageError) as caught:
            run(Config(release=folder, question="Hi?"))
        assert caught.value.hint == f"did you mean {release}?"
    with pytest.raises(UsageError, match="no release at"):
        run(Config(release=tmp_path / "none", question="Hi?"))
    shutil.rmtree(release / "export")
    with pytest.raises(UsageError, match="no build that can answer"):
        run(Config(release=release, question="Hi?"))


@pytest.mark.parametrize("question", ["", " \n"])
def test_blank_question_is_refused(release: Path, question: str) -> None:
    with pytest.raises(UsageError, match="blank"):
        run(Config(release=release, question=question))


@pytest.mark.parametrize("report", ["{", "[]", '{"system": 3}', '{"system": " "}'])
def test_odd_report(release: Path, report: str) -> None:
    (release / "report.json").write_text(report)
    if report == "{":
        with pytest.raises(UsageError, match=r"report\.json"):
            ask.find_system(release)
    else:
        assert ask.find_system(release) is None
