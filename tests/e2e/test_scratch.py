"""The whole job with a teacher of its own: a tiny DeepSeek V4, trained from scratch, then cut."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from overproof import pipeline, sources
from overproof.core import config as recipes
from overproof.core import device
from overproof.core.errors import StageError
from overproof.student import scratch
from overproof.trust import keys, verify

pytestmark = pytest.mark.slow
SHIPPED = Path(__file__).parents[2] / "datasets/support"
SETTINGS = (
    "teacher.scratch.steps=3",
    "teacher.scratch.sequences=4",
    "teacher.scratch.vocabulary=400",
    "sample.prompts=24",
    "sample.heldout_prompts=6",
    "sample.max_new_tokens=6",
    "student.layers=3",
    "student.vocabulary=380",
    "student.importance=even",
    "train.steps=2",
    "train.sequences=4",
    "train.controls=[{equal: steps}, {equal: time}]",
    "train.seeds=2",
    "evaluate.answers=1",
    "evaluate.bootstrap=50",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in `out`, its key beside it; one process a stage."""
    folder = tmp_path_factory.mktemp("scratch")
    for name, count in (("train", 60), ("heldout", 20)):
        lines = (SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    more = (SHIPPED / "train.jsonl").read_text(encoding="utf-8").splitlines()[60:120]
    (folder / "corpus.jsonl").write_text("\n".join(more), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "cores", lambda: 1)
        assert pipeline.run(asked(folder)).exit_code == 0
    return folder


def asked(folder: Path, *more: str) -> pipeline.Config:
    key = folder / "keys/tester.key"
    if not key.is_file():
        keys.create(folder / "keys", "tester")
    data = (
        f"data.train={folder}/train.jsonl",
        f"data.heldout={folder}/heldout.jsonl",
        f"teacher.scratch.data={folder}/corpus.jsonl",
    )
    return pipeline.Config(
        recipe="tiny-v4", out=folder / "out", key=key, overrides=(*SETTINGS, *data, *more)
    )


def test_the_proof_goes_back_to_the_records_of_the_teacher(place: Path) -> None:
    release = place / "out/release"
    signer = keys.PublicKey.load(place / "keys/tester.pub")
    assert verify.verify(release, signer).exit_code == 0
    teacher = json.loads((place / "out/stages/teacher/artifact.json").read_bytes())
    assert [row["name"] for row in teacher["inputs"]] == ["corpus"]
    samples = json.loads((place / "out/stages/samples/artifact.json").read_bytes())
    by_role = {row["role"]: row for row in samples["inputs"]}
    assert (by_role["teacher"]["kind"], by_role["teacher"]["name"]) == ("teacher", "teacher")
    assert "uri" not in by_role["teacher"]  # a stage of this run, no end of the walk
    terms = json.loads((place / "out/stages/terms/artifact.json").read_bytes())
    assert terms["facts"] == {"verdict": "allow"}


def test_the_report_says_what_there_is_and_what_not(place: Path) -> None:
    release = place / "out/release"
    report = json.loads((release / "report.json").read_bytes())
    assert report["speed"] is None
    assert report["receipts"] == []
    assert not (release / "export").exists()
    assert report["student"]["kl_nats_per_token"]["value"] > 0
    page, card = (release / "report.html").read_text(), (release / "README.md").read_text()
    assert "No build was made, so no speed was measured." in page
    assert "No build was made, so no speed was measured." in card
    for said in ("trained from scratch", "the first 4 words of each", "Of the 8 routed experts"):
        assert said in page, said
    assert str(place) not in json.dumps(report)


def test_every_arm_and_seed_is_trained_measured_and_stated(place: Path) -> None:
    stages, report = (
        place / "out/stages",
        json.loads((place / "out/release/report.json").read_bytes()),
    )
    trained = ("student", "control", "control-time")
    for name in (*trained, "evaluation"):
        assert (stages / name / "artifact.json").is_file()
        assert (stages / f"{name}-seed-2/artifact.json").is_file()
        assert list((place / "out/release/proof").glob(f"*-{name}-seed-2.sigstore.json"))
    assert [one["equal"] for one in report["controls"]] == ["steps", "time"]
    assert report["controls"][0]["run"]["steps"] == 2
    timed = json.loads((stages / "control-time/artifact.json").read_bytes())
    assert report["controls"][1]["run"]["steps"] == timed["config"]["equal_time"]["steps"]
    assert {row["name"] for row in timed["inputs"]} >= {"student", "control"}
    both = [
        json.loads((stages / name / "evaluation.json").read_bytes())
        for name in ("evaluation", "evaluation-seed-2")
    ]
    seeds = report["seeds"]
    assert seeds["count"] == 2
    for name in trained:
        values = [one[name]["kl_nats_per_token"]["value"] for one in both]
        assert values[0] != values[1]
        found = seeds["arms"][name]["kl_nats_per_token"]
        assert found["value"] == pytest.approx(sum(values) / 2)
        assert found["low"] < found["value"] < found["high"]
    weights = [
        (folder / "model.safetensors").read_bytes()
        for folder in (place / "out/release/model", stages / "student", stages / "student-seed-2")
    ]
    assert weights[0] == weights[1] != weights[2]
    statement = next((place / "out/release/proof").glob("*-evaluation-evaluation.sigstore.json"))
    signed = json.loads(
        base64.b64decode(json.loads(statement.read_bytes())["dsseEnvelope"]["payload"])
    )
    assert signed["predicate"]["seeds"]["count"] == 2


def test_the_released_model_loads_and_speaks(place: Path) -> None:
    folder = place / "out/release/model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2)]
    assert found[0].config.n_routed_experts == 4
    assert found[0].config.num_hidden_layers == 3
    ids = tokenizer("I want", return_tensors="pt").input_ids
    said = [one.eval().generate(ids, max_new_tokens=8, do_sample=False) for one in found]
    assert torch.equal(*said)
    assert torch.equal(found[0](ids).logits, found[1](ids).logits)


def test_a_build_that_no_engine_runs_is_refused_before_the_teacher_is_trained() -> None:
    name = recipes.find_recipe("tiny-v4")
    recipe = recipes.load_recipe(name, ["export.targets=[gguf-q8_0]"])
    assert recipe.teacher.scratch
    sketch = scratch.sketch(recipe.teacher.scratch, recipe.teacher.model, name)
    with pytest.raises(StageError, match="cannot be exported to GGUF") as caught:
        sources.demand(sketch, sketch, recipe)
    assert "export.targets: []" in caught.value.render()
