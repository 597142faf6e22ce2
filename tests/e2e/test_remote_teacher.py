"""From a recipe with an endpoint to a proved release, with real answers over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_teacher as tiny
import torch
from remote_server import MODEL, Fault, Proxy, recipe_text, serving
from safetensors.torch import load_file
from tiny_run import config
from transformers import AutoModelForCausalLM

from overproof import outlook, pipeline
from overproof.core.config import load_recipe
from overproof.core.errors import PolicyError, StageError
from overproof.teacher.remote import stage
from overproof.trust import keys, verify

pytestmark = pytest.mark.slow
KEY = "sk-test-0123456789abcdef"
TEXTS = ("Where is my parcel?", "Refund it.", "Hello?", "Is it late?", "Why?", "Call me.")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run in `out`; the key in `signer.key`, the recipe in `recipe.yaml`."""
    folder = tmp_path_factory.mktemp("remote")
    base = tiny.save(folder / "SmolLM2-tiny")
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    train.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    heldout.write_text("".join(json.dumps({"prompt": f"{t} Now"}) + "\n" for t in TEXTS[:3]))
    keys.create(folder, "signer")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # one worker a pool: pools are tested elsewhere
    with serving() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_KEY", KEY)
        proxy = Proxy(address)
        text = recipe_text(proxy.url, train, heldout, str(base))
        text = text.replace("operator: own", "operator: own, key: TEACHER_KEY")
        text = text.replace("  steps: 3", "  lora: {rank: 2}\n  steps: 3")
        (folder / "recipe.yaml").write_text(text)
        proxy.faults = [Fault(status=429), Fault(), Fault(cut=True)]
        assert pipeline.run(config(folder)).exit_code == 0
        assert len(proxy.asked) == 11
        proxy.close()
    os.sched_setaffinity(0, cores)
    yield folder


CHECKED = (
    "signals={kind: top-k, top_k: 12, tail_draws: 0, prompts: false}",
    "train.divergence={kind: forward-kl}",
    "train.controls=[{equal: steps}]",
    "train.steps=2",
    "sample.verified=true",
    "sample.prompts=4",
    "sample.max_new_tokens=24",
    "student.vocabulary=2048",
    "student.mlp_width=256",
    "student.calibration_tokens=64",
    "evaluate.attempts=1",
    "evaluate.answers=1",
    "export.targets=[]",
)


def test_likeliest_tokens_and_checked_answers_of_a_service(tmp_path: Path) -> None:
    """The service's distributions are learned, of right answers alone; the control arm beside."""
    files = [tmp_path / f"{name}.jsonl" for name in ("train", "heldout")]
    for file, texts in zip(files, (TEXTS[:4], [f"{text} Now" for text in TEXTS[:2]]), strict=True):
        never = [{"kind": "regex", "pattern": "^zebra$"}, {"kind": "regex", "pattern": "."}]
        rows = [{"prompt": text, "check": never[number > 0]} for number, text in enumerate(texts)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys.create(tmp_path, "signer")
    with serving() as address:
        (tmp_path / "recipe.yaml").write_text(recipe_text(address, *files))
        assert pipeline.run(config(tmp_path, *CHECKED)).exit_code == 0
    samples = json.loads((tmp_path / "out/stages/samples/artifact.json").read_bytes())["facts"]
    assert samples["checked"] == 4
    assert 0 < samples["right"] < 4  # one has no right answer, and an answer that is cut is not one
    found = report(tmp_path)
    for arm in (found["student"], found["controls"][0]["quality"]):
        assert arm["kl_nats_per_token"]["value"] > 0
        assert 0 <= arm["top1_agreement"]["value"] <= 1
    assert found["teacher"]["pass_at_1"]["value"] in (0, 0.5)
    kept = json.loads((tmp_path / "out/stages/student/artifact.json").read_bytes())["inputs"]
    assert "signals" in {row["role"] for row in kept}


def report(place: Path) -> dict:
    return json.loads((place / "out/release/report.json").read_bytes())


def test_a_second_run_asks_nothing_and_keeps_everything(place: Path) -> None:
    """Nothing listens there any more, and the key is gone."""
    before = (place / "out/release/report.json").read_bytes()
    assert pipeline.run(config(place)).exit_code == 0
    assert (place / "out/release/report.json").read_bytes() == before


def test_verify_says_what_is_known_of_the_teacher_and_what_is_not(place: Path) -> None:
    signer = keys.PrivateKey.load(place / "signer.key").public
    verdict = verify.verify(place / "out/release", signer)
    assert verdict.outcome == "accepted"
    found = {one.claim: one for one in verdict.claims}
    remote = found[f"teacher {MODEL}, remote"]
    assert remote.level == "attested"
    assert f"9 answers as {MODEL}, at http://127.0.0.1:" in remote.evidence
    assert found[f"which model answered as {MODEL}"].level == "unknown"
    assert found["base SmolLM2-tiny"].level == "attested"
    assert {f"terms permit {name}" for name in (MODEL, "SmolLM2-tiny")} <= found.keys()
    assert "cross-entropy" in found["quality on held-out prompts"].evidence
    assert "remote" in verify.render(verdict)


def test_the_report_shows_what_was_measured_and_leaves_out_what_was_not(place: Path) -> None:
    found = report(place)
    for arm in ("student", "untrained"):
        interval = found[arm]["nats_per_byte"]
        assert 0 < interval["low"] <= interval["value"] <= interval["high"]
        assert found[arm]["kl_nats_per_token"] is None
        assert found[arm]["top1_agreement"] is None
        assert found[arm]["perplexity"] is None
    assert all(value is None for value in found["teacher"].values())
    assert found["speed"]["teacher"] is None
    assert found["sizes"]["teacher"] is None
    assert found["sizes"]["base"]["layers"] == 3
    assert found["teacher_model"]["sha256"] is None
    assert found["teacher_model"]["remote"]["answered"] == {MODEL: 9}
    assert found["base_model"]["name"] == "SmolLM2-tiny"
    page = (place / "out/release/report.html").read_text()
    card = (place / "out/release/README.md").read_text()
    for text in (page, card):
        assert "unknown: the name of the model is the service" in text
        assert "None" not in text
        assert "9 answers" in text
    assert "Cross-entropy" in page


def test_the_release_holds_merged_weights_and_the_adapter_beside_them(place: Path) -> None:
    model = place / "out/release/model"
    made = place / "out/stages/student"
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (model / name).read_bytes() == (made / name).read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    released = load_file(model / "model.safetensors")
    assert all(torch.equal(loaded.get_parameter(name), one) for name, one in released.items())
    start = load_file(place / "out/stages/initial/model.safetensors")
    changed = {
        name.split(".")[-2]
        for name, one in released.items()
        if not torch.equal(one, start[name].bfloat16())
    }
    assert changed <= set(
        json.loads((model / "adapter/adapter_config.json").read_bytes())["target_modules"]
    )
    assert changed
    page = (place / "out/release/report.html").read_text()
    assert "low-rank adapters (LoRA, rank 2, alpha 32)" in page


def test_the_student_learned_from_the_answers_by_cross_entropy(place: Path) -> None:
    losses = json.loads((place / "out/stages/student/artifact.json").read_bytes())["facts"]
    assert len(losses["losses"]) == 3
    inputs = {
        row["role"]
        for row in json.loads((place / "out/stages/student/artifact.json").read_bytes())["inputs"]
    }
    assert inputs == {"initial", "samples"}
    assert not (place / "out/stages/control").exists()


def test_the_key_is_nowhere(place: Path) -> None:
    files = [file for file in place.rglob("*") if file.is_file()]
    assert any(file.name == "ledger.jsonl" for file in files)
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_terms_come_before_the_first_request(place: Path, tmp_path: Path) -> None:
    """Nothing listens at the recipe's endpoint: a request would fail otherwise."""
    vendor = (
        "teacher.endpoint.operator=vendor",
        "teacher.endpoint.price={input: 1, output: 1}",
        "teacher.endpoint.budget={money: 1}",
        "teacher.model=gpt-4o",
    )
    with pytest.raises(PolicyError) as caught:
        pipeline.run(config(place, *vendor).model_copy(update={"out": tmp_path}))
    assert "channel api" in caught.value.render()
    assert not (tmp_path / "stages" / stage.LEDGER).exists()
    denied = tiny.save(tmp_path / "Llama-2-7b-chat")
    with pytest.raises(PolicyError) as caught:
        pipeline.run(config(place, f"student.base={denied}").model_copy(update={"out": tmp_path}))
    assert "Llama-2-7b-chat" in caught.value.render()


def test_a_lost_ledger_shows_that_the_endpoint_is_needed(place: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="gives no answer"):
        settings = config(place, "teacher.endpoint.key=null", "teacher.endpoint.attempts=1")
        pipeline.run(settings.model_copy(update={"out": tmp_path}))


def test_the_plan_shows_the_worst_cost(place: Path) -> None:
    priced = load_recipe(
        place / "recipe.yaml",
        [
            "teacher.endpoint.price={input: 1000, output: 2000, currency: EUR}",
            "teacher.endpoint.budget={money: 0.5}",
        ],
    )
    plan = outlook.plan(priced, place / "recipe.yaml")
    found = plan["remote"]
    assert found["requests"] == 9
    assert found["worst_answer_tokens"] == 9 * 6
    money = (1000 * found["worst_prompt_tokens"] + 2000 * 54) / 1e6
    assert found["worst_money"] == pytest.approx(money)
    assert found["within_budget"] is (money <= 0.5)
    text = outlook.render(plan)
    assert "at worst    9 requests" in text
    assert "EUR" in text
    assert "beyond the budget" in text
