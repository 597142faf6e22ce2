"""From a recipe whose base has another tokenizer than the teacher to a verified release."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_teacher as tiny
from tiny_run import config
from transformers import AutoTokenizer

from overproof import pipeline
from overproof.core import device
from overproof.teacher import local
from overproof.teacher.local import load
from overproof.trust import keys, verify

pytestmark = pytest.mark.slow
TEXTS = (
    "Where is my parcel 123456?", "Refund 1234 euro.", "Hello?", "Is it late, naïve café 日本?",
    "Why 😀?", "Call me on Monday.", "The order arrived 12 May.", "Please refund the payment.",
)  # fmt: skip
RECIPE = """
name: others
data: {{train: {folder}/train.jsonl, heldout: {folder}/heldout.jsonl, licence: CC0-1.0}}
teacher: {{model: {folder}/SmolLM2-tiny}}
sample: {{prompts: 8, answers: 2, heldout_prompts: 4, max_new_tokens: 12, batch: 4, temperature: 1}}
signals: {{kind: sampled, draws: 30}}
student:
  name: SmolLM2-Small
  base: {folder}/SmolLM2-other
  layers: 2
  vocabulary: 340
  calibration_tokens: 64
train: {{steps: 3, sequences: 2, sequence_length: 128}}
evaluate: {{bootstrap: 50, answers: 1, exact: true}}
export: {{targets: [gguf-q8_0], max_kl: 1.0, min_agreement: 0.0}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in `out`, one process a stage."""
    folder = tmp_path_factory.mktemp("others")
    tiny.save(folder / "SmolLM2-tiny")
    tiny.save_other(folder / "SmolLM2-other")
    for name, texts in (("train", TEXTS), ("heldout", [f"{text} Now" for text in TEXTS[:4]])):
        rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    keys.create(folder, "signer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "cores", lambda: 1)
        assert pipeline.run(config(folder)).exit_code == 0
    return folder


def stage(place: Path, name: str) -> dict:
    return json.loads((place / "out/stages" / name / "artifact.json").read_bytes())


def test_the_proof_names_both_models_and_the_way_between_their_tokens(place: Path) -> None:
    signer = keys.PrivateKey.load(place / "signer.key").public
    verdict = verify.verify(place / "out/release", signer)
    assert verdict.outcome == "accepted"
    found = {one.claim: one for one in verdict.claims}
    assert found["base SmolLM2-other"].level == "attested"
    assert "over common tokens" in found["quality on held-out prompts"].evidence
    roles = {row["role"] for row in stage(place, "retokenised")["inputs"]}
    assert roles == {"samples", "signals", "train", "heldout", "teacher", "base"}
    learned = {row["role"] for row in stage(place, "student")["inputs"]}
    assert learned == {"initial", "samples", "signals", "retokenised"}


def test_the_student_speaks_the_tokens_and_the_template_of_its_base(place: Path) -> None:
    made = load(str(place / "out/release/model"))
    asked = made.tokenizer.decode(made.prompt_ids("Hello?", None))
    assert asked == "<s><user>Hello?<assistant>"
    assert 300 < len(AutoTokenizer.from_pretrained(place / "out/release/model")) <= 340


def test_the_report_measures_what_both_have_in_common(place: Path) -> None:
    report = json.loads((place / "out/release/report.json").read_bytes())
    for arm in (report["student"], report["untrained"], report["controls"][0]["quality"]):
        assert arm["kl_nats_per_token"] is None
        assert arm["common_kl_nats_per_place"]["value"] > 0
        assert 0 <= arm["common_top1_agreement"]["value"] <= 1
    assert report["teacher"]["nats_per_byte"]["value"] > 0
    assert report["sizes"]["teacher"]["vocabulary"] == tiny.TOKENS
    assert report["base_model"]["name"] == "SmolLM2-other"
    page = (place / "out/release/report.html").read_text()
    assert "KL over common tokens" in page
    assert "both texts were aligned by their bytes" in page


def test_a_second_run_keeps_everything(place: Path) -> None:
    """Not a model is loaded: the tokenizers alone say that the tokens are others."""
    before = {name: stage(place, name)["times"] for name in ("retokenised", "student", "control")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "_read", None)
        assert pipeline.run(config(place)).exit_code == 0
    assert before == {name: stage(place, name)["times"] for name in before}


def test_other_answers_or_another_base_are_other_tokens(place: Path) -> None:
    found = stage(place, "retokenised")
    rows = (place / "out/stages/retokenised/train.jsonl").read_text().splitlines()
    heard = (place / "out/stages/samples/train.jsonl").read_text().splitlines()
    assert len(rows) == len(heard) == found["facts"]["answers"]
    base, teacher = tiny.other_tokenizer(), tiny.tokenizer()
    for row, said in zip(map(json.loads, rows), map(json.loads, heard), strict=True):
        assert row["key"] == said["key"]
        ours = base.decode([one for one in row["answer"] if one != 1])
        theirs = teacher.decode([one for one in said["answer"] if one != 0])
        assert theirs.startswith(ours.replace("\ufffd", ""))
        assert base.decode(row["prompt"], skip_special_tokens=False).endswith("<assistant>")


def test_the_plan_knows_both_models(place: Path) -> None:
    plan = pipeline.run(config(place).model_copy(update={"dry_run": True})).plan
    assert plan is not None
    assert plan["student"]["shape"]["layers"] == 2
    assert plan["student"]["shape"]["vocabulary"] == 340
