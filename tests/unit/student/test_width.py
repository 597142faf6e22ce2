"""Heads and hidden channels dropped: what stays, that nothing else changes, and that it loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import torch
import training
from test_shape import architecture

from overproof.core.errors import StageError, UsageError
from overproof.core.sections import StudentConfig
from overproof.data.pack import Packed, pack
from overproof.student import shape, width
from overproof.student.body import fits
from overproof.student.examples import respell
from overproof.student.initial import load_model, save_model

KEPT = [0, 1, 2]


def config(**changes: object) -> StudentConfig:
    return StudentConfig(**({"name": "s", "vocabulary": tiny.TOKENS} | changes))


def calibration(count: int = 60) -> Packed:
    vocabulary = training.vocabulary()
    texts = [respell(one, vocabulary).tokens for one in tiny.examples(count)]
    return pack(training.HEAD, texts, training.ROOM)


def student_of(base, asked: StudentConfig, *, repaired: bool = True):
    vocabulary, batch = training.vocabulary(), calibration()
    kept = list(range(len(base.model.layers)))
    student = shape.cut(base, kept, vocabulary)
    narrowed = shape.narrow(student, base, kept, batch, vocabulary, asked)
    if repaired:
        shape.repair(student, base, kept, batch, vocabulary, lambda _: None, narrowed)
    return student, narrowed


def test_keeping_all_is_the_base_bit_for_bit() -> None:
    base = tiny.model()
    whole = config(
        hidden=base.config.hidden_size, kv_heads=2, mlp_width=base.config.intermediate_size
    )
    student, narrowed = student_of(base, whole)
    assert narrowed.whole
    ids = training.vocabulary().teacher_ids_V
    for name, values in base.state_dict().items():
        wanted = values[ids] if values.shape[0] == tiny.TOKENS else values
        assert torch.equal(student.state_dict()[name], wanted), name


@pytest.mark.parametrize("keep", ["heads", "channels"])
def test_dropping_none_by_the_way_of_dropping_is_the_base_too(keep: str) -> None:
    """The ratio of the norms is exactly 1, and nothing is put into another order."""
    base = tiny.model()
    student, _ = student_of(base, config())
    if keep == "heads":
        width.drop_groups(student, [torch.arange(2)] * 3)
    else:
        every = torch.arange(base.config.hidden_size)
        ratios = width.norm_ratios(student, calibration(), every)
        assert ratios == [1.0] * 7
        width.drop_channels(student, every, ratios)
    whole, _ = student_of(base, config())
    for name, values in whole.state_dict().items():
        assert torch.equal(student.state_dict()[name], values), name


def test_groups_go_with_their_query_heads() -> None:
    """A group that adds nothing goes, of each layer its own; what the model says is the same."""
    base = tiny.model()
    silent = (1, 0, 1)
    with torch.no_grad():
        for layer, group in zip(base.model.layers, silent, strict=True):
            layer.self_attn.o_proj.weight[:, group * 16 : (group + 1) * 16] = 0.0
    student, narrowed = student_of(base, config(kv_heads=1), repaired=False)
    assert [row.tolist() for row in narrowed.groups] == [[1 - group] for group in silent]
    assert student.config.num_attention_heads == 2
    assert student.config.num_key_value_heads == 1
    assert student.config.head_dim == 8
    text = [5, 30, 17, 8]
    ids = training.vocabulary().teacher_ids_V
    torch.testing.assert_close(
        tiny.alone(student, training.vocabulary().student_ids_U[text]),
        tiny.alone(base, text)[:, ids],
    )


def test_channels_that_carry_nothing_go_and_norms_keep_their_size() -> None:
    """A base in which a quarter of the channels is zero: cut to the rest it says the same."""
    base = tiny.model()
    quiet = torch.arange(3, 32, 4)
    with torch.no_grad():
        base.model.embed_tokens.weight[:, quiet] = 0.0
        for layer in base.model.layers:
            for name in width.WRITES:
                layer.get_submodule(name).weight[quiet] = 0.0
    student, narrowed = student_of(base, config(hidden=24), repaired=False)
    assert not set(narrowed.channels.tolist()) & set(quiet.tolist())
    assert student.config.hidden_size == 24
    assert student.config.head_dim == 8
    # The mean square over 24 channels is 4/3 of that over 32.
    for norm in (student.model.norm, student.model.layers[1].input_layernorm):
        torch.testing.assert_close(norm.weight, torch.full((24,), (4 / 3) ** 0.5))
    text = [5, 30, 17, 8]
    torch.testing.assert_close(
        tiny.alone(student, training.vocabulary().student_ids_U[text]),
        tiny.alone(base, text)[:, training.vocabulary().teacher_ids_V],
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_what_is_measured_is_what_the_parts_carry() -> None:
    """Against transformers' own pass over each text, one after another."""
    base, texts = tiny.model(), [[5, 30, 17, 8], [41, 9], [77, 12, 13]]
    batch = pack((), texts, 12)
    carried = width.measure(base, batch, torch.from_numpy(batch.tokens_RT))
    sizes, added = [], []
    for norm in width._norms(base):
        norm.register_forward_hook(lambda _m, _given, out: sizes.append(out[0].abs()))
    last = base.model.layers[1].self_attn.o_proj
    last.register_forward_pre_hook(
        lambda module, given: added.append(given[0][0, :, 16:] @ module.weight[:, 16:].T)
    )
    for text in texts:
        tiny.alone(base, text)
    tokens = sum(map(len, texts))
    total = torch.cat(sizes).sum(0) / tokens  # of all norms, one after another
    torch.testing.assert_close(carried.channels_D, total, rtol=1e-4, atol=1e-5)
    length = float(torch.cat(added).norm(dim=-1).mean())
    assert float(carried.groups_LG[1, 1]) == pytest.approx(length, rel=1e-4)


ALL = {"hidden": 24, "kv_heads": 1, "mlp_width": 48}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cut", [{"hidden": 24}, {"kv_heads": 1}, ALL])
def test_a_narrowed_student_is_a_model_of_transformers(
    tmp_path: Path, tied: bool, cut: dict[str, int]
) -> None:
    base = tiny.model(tie_word_embeddings=tied)
    student, _ = student_of(base, config(**cut))
    assert fits(student)
    save_model(student, tmp_path)
    written = json.loads((tmp_path / "config.json").read_bytes())
    assert written["head_dim"] == 8
    assert written["hidden_size"] == cut.get("hidden", 32)
    assert written["num_key_value_heads"] == cut.get("kv_heads", 2)
    assert written["intermediate_size"] == cut.get("mlp_width", 64)
    again = load_model(tmp_path)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    assert torch.equal(tiny.alone(again, [5, 30, 17]), tiny.alone(student, [5, 30, 17]))


def test_repair_brings_the_states_nearer() -> None:
    base, batch, vocabulary = tiny.model(), calibration(300), training.vocabulary()
    errors = []
    for ridge in (None, 1.0):
        student = shape.cut(base, KEPT, vocabulary)
        narrowed = shape.narrow(student, base, KEPT, batch, vocabulary, config(**ALL))
        if ridge is None:  # as it was cut
            student.config.intermediate_size = 64
            gap = _gap(student, base, narrowed, batch, vocabulary)
        else:
            shape.repair(student, base, KEPT, batch, vocabulary, lambda _: None, narrowed)
            gap = _gap(student, base, narrowed, batch, vocabulary)
        errors.append(gap)
    assert errors[1] < 0.8 * errors[0]


def _gap(student, base, narrowed, batch, vocabulary) -> float:
    valid = torch.from_numpy(batch.segments_RT >= 0)
    with torch.inference_mode():
        ours = shape.Stack(student, batch)
        theirs = shape.Stack(base, batch, shape._teacher_ids(batch, vocabulary))
        got = ours.through(ours.embedded, KEPT)[valid]
        want = theirs.through(theirs.embedded, KEPT)[valid][:, narrowed.channels]
    return float(((got - want).norm(dim=-1) / want.norm(dim=-1)).mean())


def test_more_than_there_is_is_refused() -> None:
    base = tiny.model()
    with pytest.raises(UsageError, match="larger than the model") as caught:
        shape.demand_fit(base, config(hidden=33, kv_heads=3))
    assert "student.hidden: got 33" in caught.value.render()
    assert "student.kv_heads: got 3" in caught.value.render()


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"])
def test_families_whose_widths_are_cut(name: str) -> None:
    base = architecture(name)
    asked = config(hidden=32, kv_heads=1)
    shape.demand_fit(base, asked)
    student, narrowed = student_of(base, asked)
    ids = torch.tensor([[5, 30, 17, 8]])
    with torch.inference_mode():
        logits = student(ids).logits
    assert logits.shape[-1] == training.vocabulary().size
    assert torch.isfinite(logits).all()
    assert len(narrowed.channels) == 32
    bias = student.model.layers[0].self_attn.q_proj.bias
    assert (bias is not None) == (name == "Qwen2")


def test_norms_of_another_kind_are_refused() -> None:
    base = architecture("Gemma")  # multiplies by 1 + its weights
    shape.demand_fit(base, config(kv_heads=1))
    with pytest.raises(StageError, match="is no plain RMSNorm") as caught:
        shape.demand_fit(base, config(hidden=32))
    assert "leave student.hidden out" in caught.value.render()


def test_parts_that_are_not_known_are_refused() -> None:
    base = tiny.model()
    base.model.layers[0].adapter = torch.nn.Linear(32, 32)
    with pytest.raises(StageError, match="cannot be dropped") as caught:
        shape.demand_fit(base, config(kv_heads=1))
    assert "unknown parts of a layer: adapter" in caught.value.render()
    shape.demand_fit(base, config(layers=2))


def test_of_equals_the_first_stay() -> None:
    assert width.largest(torch.tensor([1.0, 3.0, 3.0, 1.0, 1.0]), 3).tolist() == [0, 1, 2]
    assert np.all(width.largest(torch.ones(500), 100).numpy() == np.arange(100))
