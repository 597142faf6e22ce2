"""A student cut from another model than its teacher: an existing small one, or a part of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_teacher as tiny
import torch
from tiny_stage import recipe, samples

from overproof.core.artifact import Artifact, Resource
from overproof.core.errors import StageError, UsageError
from overproof.student import initial
from overproof.teacher import local
from overproof.teacher.origins import find
from overproof.teacher.signals import cache

SMALL = {"layers": 2, "seed": 5, "hidden_size": 48, "intermediate_size": 96}
SHAPE = ("student.layers=null", "student.mlp_width=null", "student.vocabulary=300")


def small() -> local.Teacher:
    made = tiny.teacher(**SMALL)
    return replace(made, name="small", resource=Resource("base", "small", "file:small", "5" * 64))


def stage(store: Path, base: local.Teacher | None, *more: str) -> Artifact:
    asked = recipe(*SHAPE, "student.calibration_tokens=40", *more)
    made = samples(store, asked, None, 40)
    teacher = tiny.teacher()
    signals = cache(tiny.loads(teacher), made, asked, {"teacher": teacher.resource}, store)
    origin = initial.Base(base.resource, lambda: base) if base else None
    return initial.initial(lambda: teacher, made, signals, asked, teacher.resource, store, origin)


def test_an_existing_model_is_the_student_bit_for_bit(tmp_path: Path) -> None:
    made = stage(tmp_path, small())
    student, base = initial.load(made.path), small().model
    assert student.facts["kept_layers"] == [0, 1]
    assert student.facts["base"]["layers"] == 2
    assert student.facts["teacher"]["layers"] == 3
    for name, values in base.model.layers.state_dict().items():
        assert torch.equal(student.model.model.layers.state_dict()[name], values), name
    rows = torch.from_numpy(student.vocabulary.teacher_ids_V)
    known = rows >= 0
    ours, theirs = student.model.model.embed_tokens.weight, base.model.embed_tokens.weight
    assert torch.equal(ours[known], theirs[rows[known]])
    assert {"role": "base", "kind": "base", "name": "small", "uri": "file:small",
            "sha256": "5" * 64} in made.manifest["inputs"]  # fmt: skip


def test_a_part_of_it_is_cut_and_repaired(tmp_path: Path) -> None:
    made = stage(tmp_path, small(), "student.layers=1")
    student = initial.load(made.path)
    assert len(student.facts["kept_layers"]) == len(student.facts["removals"]) == 1
    assert student.model.config.hidden_size == 48
    (kept,) = student.facts["kept_layers"]
    before = small().model.model.layers[kept].mlp.down_proj.weight
    assert not torch.equal(student.model.model.layers[0].mlp.down_proj.weight, before)


def test_other_weights_make_another_student_and_another_place_does_not(tmp_path: Path) -> None:
    first = stage(tmp_path, small(), "student.base=here")
    assert stage(tmp_path, small(), "student.base=there").manifest == first.manifest
    other = replace(small(), resource=Resource("base", "small", "file:small", "6" * 64))
    assert stage(tmp_path, other).sha256 != first.sha256


def test_other_tokens_than_the_teachers_are_refused() -> None:
    asked = recipe(*SHAPE).student
    initial.demand(tiny.teacher(), small(), asked)
    other = small()
    other.tokenizer.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    initial.demand(tiny.teacher(), other, asked)  # more than the teacher's are no harm
    with pytest.raises(UsageError, match="small has other tokens") as caught:
        initial.demand(other, small(), asked)
    assert "1 of 361 tokens, '<|more|>' the first" in caught.value.render()


def test_padding_of_the_teachers_table_is_left_out(tmp_path: Path) -> None:
    """A teacher whose table has rows that no token uses, and a base that lacks them."""
    from overproof.student.importance import Calibration
    from overproof.student.losses import Sparse, divergence_of

    ids, probs = torch.tensor([[5, 400, 7]]), torch.tensor([[0.5, 0.2, 0.3]])
    found = Calibration(None, None, ids, probs).within(360)  # type: ignore[arg-type]
    assert found.ids_PK.max() < 360
    assert found.probs_PK.tolist() == [pytest.approx([0.5, 0.0, 0.3])]
    loss, _ = divergence_of(torch.zeros(1, 360), Sparse.of(found.ids_PK, found.probs_PK))
    assert torch.isfinite(loss).all()


def test_a_base_need_not_converse(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "SmolLM2-tiny", **SMALL)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(StageError, match="no chat template"):
        local.load(str(folder))
    assert local.load_base(str(folder)).model.config.hidden_size == 48


def test_the_teacher_under_another_path_is_no_other_model(tmp_path: Path) -> None:
    teacher, same = (tiny.save(tmp_path / name) for name in ("SmolLM2-a", "SmolLM2-b"))
    other = tiny.save(tmp_path / "SmolLM2-c", **SMALL)
    for base, kinds in ((same, ["teacher"]), (other, ["teacher", "base"])):
        found = find(recipe(f"teacher.model={teacher}", f"student.base={base}"))
        assert [one.resource.kind for one in found.each] == kinds
        assert found.here is found.teacher
        assert found.other is found.base


def test_without_signals_layers_are_measured_against_the_bases_own(tmp_path: Path) -> None:
    text = ("signals={kind: text}", "train.divergence={kind: cross-entropy}", "train.controls=[]")
    asked = recipe(
        *SHAPE, "student.base=tiny", "student.layers=2", "student.calibration_tokens=40", *text
    )
    made, teacher = samples(tmp_path, asked, None, 40), tiny.teacher()
    here = replace(teacher.resource, kind="base")
    found = initial.initial(lambda: teacher, made, None, asked, here, tmp_path)
    assert len(found.facts["kept_layers"]) == 2
    assert found.facts["removals"][0]["kl_nats_per_token"] > 0
    assert "teacher" not in found.facts  # of a teacher that is not here no size is known
    assert [row["role"] for row in found.manifest["inputs"]][:1] == ["base"]
