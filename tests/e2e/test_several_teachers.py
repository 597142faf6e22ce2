"""From a recipe with three teachers, routed by a field and by weight, to a proved release."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_teacher as tiny
from tiny_run import config

from overproof import pipeline, preflight
from overproof.core import artifact, device
from overproof.core.config import load_recipe
from overproof.core.errors import UsageError
from overproof.teacher import answers, local
from overproof.teacher.cache import SignalCache
from overproof.teacher.signals import shard_signals
from overproof.trust import keys, verify

pytestmark = pytest.mark.slow
ASKS = ("Where is parcel", "Refund order")
TEXTS = [f"{ask} {number}?" for number in range(12) for ask in ASKS]
RECIPE = """
name: several
data: {{train: {folder}/train.jsonl, heldout: {folder}/heldout.jsonl, licence: CC0-1.0,
  origin: test}}
teacher:
  model: {folder}/SmolLM2-tiny
  others:
    - {{model: {folder}/SmolLM2-bills, records: {{topic: [refund]}}}}
    - {{model: {folder}/SmolLM2-third, weight: 1}}
sample: {{prompts: 24, heldout_prompts: 12, answers: 2, temperature: 1.0, max_new_tokens: 8,
  batch: 8}}
signals: {{kind: top-k, top_k: 8, tail_draws: 0}}
student: {{name: SmolLM2-Small, layers: 2, vocabulary: 300, importance: even,
  calibration_tokens: 64}}
train: {{steps: 3, sequences: 2, sequence_length: 128, controls: []}}
evaluate: {{bootstrap: 50, answers: 1}}
export: {{targets: []}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in `out`, its key beside it; one process a stage."""
    folder = tmp_path_factory.mktemp("several")
    for seed, name in enumerate(("tiny", "bills", "third")):
        tiny.save(folder / f"SmolLM2-{name}", seed=seed)
    for name, texts in (("train", TEXTS), ("heldout", [f"{text} Now" for text in TEXTS])):
        rows = [
            {"prompt": text, "topic": "refund" if text.startswith("Refund") else "parcel"}
            for text in texts
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    keys.create(folder, "signer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "cores", lambda: 1)
        assert pipeline.run(config(folder)).exit_code == 0
    return folder


def test_each_record_was_answered_by_its_teacher(place: Path) -> None:
    said = answers.read(artifact.load(place / "out/stages/samples"))
    rows = [json.loads(line) for line in (place / "train.jsonl").read_text().splitlines()]
    assert len(rows) == len({one.key for one in said.train}) == 24
    teachers = {one.key: set[int]() for one in said.train}
    for one in said.train:
        teachers[one.key].add(one.teacher)
    assert sum(found == {1} for found in teachers.values()) == 12
    shared = [found for found in teachers.values() if found != {1}]
    assert set().union(*shared) == {0, 2}
    assert [one.teacher for one in said.train] == sorted(one.teacher for one in said.train)


def test_each_signal_is_of_the_teacher_that_answered(place: Path) -> None:
    """What was kept while sampling is what a pass of the right teacher gives, not of another."""
    recipe = load_recipe(place / "recipe.yaml")
    made = artifact.load(place / "out/stages/samples")
    said = answers.read(made)
    cache = SignalCache(made.path, answers.made_of(made, recipe))
    (found,) = cache.signals()
    start = 0
    for which, name in enumerate(("tiny", "bills", "third")):
        own = [one for one in said.train if one.teacher == which]
        teacher = local.load(str(place / f"SmolLM2-{name}"))
        again = shard_signals(teacher.half, said.prefix, own, 128, cache.kept)
        rows = found.rows(slice(start, start + len(again)))
        start += len(again)
        same = (rows.arrays[0][:, 0] == again.arrays[0][:, 0]).float().mean()
        assert same > 0.9
    assert start == len(found)


def test_the_proof_names_every_teacher(place: Path) -> None:
    signer = keys.PublicKey.load(place / "signer.pub")
    verdict = verify.verify(place / "out/release", signer)
    assert verdict.outcome == "accepted"
    claims = {one.claim for one in verdict.claims}
    names = {f"SmolLM2-{name}" for name in ("tiny", "bills", "third")}
    assert {f"teacher {name}" for name in names} <= claims
    assert {f"terms permit {name}" for name in names} <= claims


def test_the_report_says_what_each_gave(place: Path) -> None:
    report = json.loads((place / "out/release/report.json").read_bytes())
    shares = report["teachers"]
    half = "50% of all others"
    assert [one["asked"] for one in shares] == [half, "topic: refund", half]
    assert sum(one["answers"] for one in shares) == report_answers(place)
    assert sum(one["prompts"] for one in shares) == 12
    assert all(one["student"]["kl_nats_per_token"]["value"] > 0 for one in shares)
    for page in ("report.html", "README.md"):
        text = (place / "out/release" / page).read_text()
        assert "SmolLM2-bills" in text
        assert "3 teachers answered" in text


def report_answers(place: Path) -> int:
    manifest = json.loads((place / "out/stages/samples/artifact.json").read_bytes())
    return int(manifest["facts"]["answers"])


def test_a_pass_of_its_own_is_made_by_each(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cores", lambda: 1)
    assert pipeline.run(config(place, "signals.while_sampling=false")).exit_code == 0
    found = artifact.load(place / "out/stages/signals")
    assert len([*found.path.glob("signals-*.safetensors")]) == 3  # none holds two teachers'


def test_the_try_names_the_one_that_does_not_fit(place: Path) -> None:
    strange = place / "SmolLM2-strange"
    tiny.save(strange, vocabulary=tiny.TOKENS + 8)
    settings = f"teacher.others=[{{model: {strange}}}]"
    with pytest.raises(UsageError, match="does not speak like"):
        pipeline.run(config(place, settings, "seed=9"))
    checks = {one.name: one for one in preflight.run(str(place / "recipe.yaml"), [settings])}
    assert checks["teachers"].state == "missing"
    assert "rows of the embedding" in checks["teachers"].detail
