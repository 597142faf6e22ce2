"""Control arms of equal time, and several seeds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_teacher as tiny
from test_methods import SHAPE, compared, stages
from tiny_stage import recipe

from overproof.core import artifact, device
from overproof.core.artifact import Artifact
from overproof.core.config import find_recipe, load_recipe
from overproof.core.errors import UsageError
from overproof.core.recipe import Recipe
from overproof.student import arms, steplog

BOTH = "train.controls=[{equal: time}, {equal: steps}]"
ANEW = "signals={kind: sampled, while_sampling: false}"


@pytest.fixture(autouse=True)
def _one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cores", lambda: 1)


def trained(made: dict[str, Artifact], asked: Recipe, store: Path) -> tuple[Artifact, ...]:
    start, samples, signals = made["initial"], made["samples"], made["signals"]
    return arms.students(
        tiny.teacher, start, samples, signals, asked, tiny.teacher().resource, store
    )


def took(store: Path, name: str, seconds: float, steps: int) -> Artifact:
    """A finished arm that trained for so long."""

    def make(work: artifact.Work) -> dict[str, object]:
        work.measured["seconds"] = seconds
        return {"steps": steps}

    return artifact.build(store, "control", inputs={}, config={"of": name}, make=make, name=name)


def test_steps_fill_the_students_seconds(tmp_path: Path) -> None:
    student, pace = took(tmp_path, "student", 90.0, 40), took(tmp_path, "control", 60.0, 40)
    found = arms.clocked(student, pace, None)
    assert found == {"steps": 60, "seconds": 90.0, "seconds_per_step": 1.5}
    # At least one, however fast the student was.
    assert arms.clocked(took(tmp_path, "fast", 0.1, 40), pace, None)["steps"] == 1
    signals = took(tmp_path, "signals", 0.0, 1)
    signals.manifest["times"]["seconds"] = 30.0
    assert arms.clocked(student, pace, signals)["steps"] == 80


def test_equal_time_is_measured_once_and_then_part_of_the_key(tmp_path: Path) -> None:
    """An arm that is lost is trained again for as many steps, and ends in the same bits."""
    asked = recipe(ANEW, BOTH, *SHAPE, "train.steps=3")
    made = stages(tmp_path, asked)
    (student,) = trained(made, asked, tmp_path)
    found = compared(made, asked, tmp_path, student)
    assert list(found) == ["control", "control-time"]
    (pace,), (timed,) = found.values()
    clock = timed.manifest["config"]["equal_time"]
    assert timed.facts["steps"] == clock["steps"] == arms.clocked(student, pace, None)["steps"]
    assert timed.manifest["config"]["train"]["steps"] == clock["steps"]
    head = steplog.read(timed.file(steplog.FILE), timed.facts["step_log"])[0]
    assert head["equal_time"] == clock
    assert clock["seconds"] == round(arms.training_seconds(student), 3)
    roles = {row["role"] for row in timed.manifest["inputs"]}
    assert roles == {"initial", "samples", "student", "control"}
    shutil.rmtree(timed.path)
    again = compared(made, asked, tmp_path, student)
    assert again["control"][0].manifest == pace.manifest
    assert again["control-time"][0].sha256 == timed.sha256
    assert again["control-time"][0].manifest["times"] != timed.manifest["times"]


def test_seeds_change_the_order_and_the_first_is_that_of_one(tmp_path: Path) -> None:
    asked = recipe(*SHAPE, "train.steps=3")
    made = stages(tmp_path, asked)
    (alone,) = trained(made, asked, tmp_path)
    twice = recipe(*SHAPE, "train.steps=3", "train.seeds=2")
    first, second = trained(made, twice, tmp_path)
    assert first.manifest == alone.manifest
    assert second.path.name == "student-seed-2"
    assert first.facts["losses"] != second.facts["losses"]
    controls = compared(made, twice, tmp_path)["control"]
    for student, control in zip((first, second), controls, strict=True):
        # In the same order as the student of its seed.
        logs = [steplog.read(one.file(steplog.FILE)) for one in (student, control)]
        orders = [[line["records"] for line in log[1:-1]] for log in logs]
        assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["train.controls=[{equal: time}]"], "add {equal: steps}, whose pace"),
        (["train.controls=[{equal: steps}, {equal: steps}]"], "names an arm twice"),
        (
            ["train.controls=[{equal: steps}, {equal: time-with-signals}]"],
            "set signals.while_sampling: false",
        ),
        (
            ["train.controls=[{equal: steps}, {equal: time}]", "sample.verified=true",
             "train.divergence={kind: cross-entropy}"],
            "leave equal: steps alone",
        ),
        (["train.controls=[{equals: steps}]"], "train.controls.0.equals: unknown key"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(more: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(find_recipe("support"), more)
    assert words in caught.value.render()


def test_the_signals_own_pass_can_be_counted() -> None:
    found = load_recipe(
        find_recipe("support"),
        ["train.controls=[{equal: steps}, {equal: time-with-signals}]",
         "signals.while_sampling=false", "train.seeds=3"],
    )  # fmt: skip
    assert found.train.trainings == 9
