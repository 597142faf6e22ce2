from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from gguf import GGUFReader, quants
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from overproof.core import artifact
from overproof.core.artifact import Artifact
from overproof.core.errors import StageError, UsageError
from overproof.core.sections import ExportConfig
from overproof.release import export as module
from overproof.release import parity
from overproof.release.engine import DEFAULT_CONTEXT, Engine
from overproof.release.export import RECEIPT, TOKENIZER, export
from overproof.release.parity import Sample, choose, compare, read_tokenizer
from overproof.release.targets import TARGETS, find, gguf
from overproof.student.quantise import release, stored
from overproof.trust.predicates import ParityReceipt

F16_ONLY = ExportConfig(targets=("gguf-f16",))
TEXTS = tiny_model.CONVERSATIONS
Edit = dict[str, object]


# A tiny random model in 8 bits is further away than a trained one, on some processors (0.022).
LOOSE = ExportConfig(targets=tuple(TARGETS), max_kl=0.05, q4_0={"max_kl": 9.0, "min_agreement": 0})


@pytest.fixture(scope="module")
def exported(tiny_student: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(tiny_student, LOOSE, TEXTS, store=tmp_path_factory.mktemp("store"))


@pytest.fixture
def copied(tiny_student: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_student.path, tmp_path / "model"))


def test_export_writes_each_build_with_its_receipt(exported: Artifact) -> None:
    artifact.check(exported)
    names = {entry["name"] for entry in exported.manifest["files"]}
    assert names == {f"{n}/{f}" for n in TARGETS for f in ("model.gguf", "receipt.json")}
    for name in TARGETS:
        receipt = json.loads(exported.file(f"{name}/{RECEIPT}").read_bytes())
        assert receipt == exported.facts["receipts"][name]
        assert receipt["passed"] is True
        assert receipt["texts"] == len(TEXTS)
        assert receipt["positions"] > 60
        assert receipt["file_bytes"] == exported.file(f"{name}/model.gguf").stat().st_size
        ParityReceipt.model_validate(receipt)


def test_receipts_grow_with_the_loss_of_precision(exported: Artifact) -> None:
    f16, q8, q4 = (exported.facts["receipts"][f"gguf-{name}"] for name in ("f16", "q8_0", "q4_0"))
    assert 0 <= f16["kl_nats_per_token"] < 1e-4
    assert f16["top1_agreement"] == 1.0
    assert f16["kl_nats_per_token"] < q8["kl_nats_per_token"] < LOOSE.max_kl
    assert q8["kl_nats_per_token"] < q4["kl_nats_per_token"]
    assert (q4["max_kl"], q4["min_agreement"]) == (9.0, 0)
    assert 0 < f16["mean_abs_delta_logprob"] < q8["mean_abs_delta_logprob"]
    assert f16["max_abs_delta_logprob"] < 0.1


def test_tensor_types_are_read_from_the_file(exported: Artifact) -> None:
    types = {n: exported.facts["receipts"][n]["tensor_types"] for n in TARGETS}
    # Three layers of seven matrices and two norms, the embedding, the last norm; tied output.
    assert types["gguf-q8_0"] == {"F32": 7, "Q8_0": 22}
    assert types["gguf-q4_0"] == {"F32": 7, "Q4_0": 21, "Q8_0": 1}
    assert types["gguf-f16"] == {"F16": 22, "F32": 7}


def test_equal_models_give_equal_bytes(
    exported: Artifact, tiny_student: Artifact, tmp_path: Path
) -> None:
    again = export(tiny_student, LOOSE, TEXTS, store=tmp_path)
    assert again.sha256 == exported.sha256


def test_ids_are_taken_as_well_as_text(tiny_student: Artifact, exported: Artifact) -> None:
    tokenizer = read_tokenizer(tiny_student.path / TOKENIZER)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    again = export(tiny_student, LOOSE, ids, store=exported.path.parent)
    assert again.manifest == exported.manifest  # kept from the earlier run


@pytest.mark.parametrize("bound", [{"max_kl": 1e-7}, {"min_agreement": 1.0, "max_kl": 9.0}])
def test_build_beyond_its_bound_fails_the_stage(
    tiny_student: Artifact, tmp_path: Path, bound: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = gguf.Gguf.write

    def spoil(self: gguf.Gguf, model: Path, path: Path) -> None:
        """Write the build with one matrix negated, as a wrong mapping would."""
        original(self, model, path)
        reader = GGUFReader(path, "r+")
        next(t for t in reader.tensors if t.name == "blk.1.ffn_down.weight").data[:] *= -1

    monkeypatch.setattr(gguf.Gguf, "write", spoil)
    config = ExportConfig(targets=("gguf-f16",), **bound)
    with pytest.raises(StageError, match="gguf-f16 is too far from the model") as caught:
        export(tiny_student, config, TEXTS, store=tmp_path)
    assert "KL(model || build): got" in caught.value.details[0]
    assert "wanted at least" in caught.value.details[1]
    assert not (tmp_path / "export").exists()


def test_build_of_another_tokenizer_fails_the_stage(
    tiny_student: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from overproof.release.targets import gguf_vocabulary

    monkeypatch.setattr(gguf_vocabulary, "cut_of", lambda state: "smollm")
    with pytest.raises(StageError, match="cuts text differently") as caught:
        export(tiny_student, F16_ONLY, ["Pay it by  12 May"], store=tmp_path)
    assert caught.value.details[0].startswith("token ")


@pytest.mark.parametrize("texts", [[], [""], [[5], []]])
def test_no_text_no_receipt(tiny_student: Artifact, tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(UsageError, match="no held-out text"):
        export(tiny_student, LOOSE, texts, store=tmp_path)


SHAPES: dict[str, Edit] = {
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 64},
    "linear rope": {
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0},
    },
    "llama3 rope": {
        "rope_parameters": {
            "rope_theta": 1e4,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "rows of no whole blocks": {"hidden_size": 80, "intermediate_size": 144},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_keep_parity(tmp_path: Path, shape: str) -> None:
    student = tiny_model.student(tmp_path, **SHAPES[shape])
    done = export(student, F16_ONLY, TEXTS[:2], store=tmp_path)
    assert done.facts["receipts"]["gguf-f16"]["kl_nats_per_token"] < 1e-3
    assert done.facts["receipts"]["gguf-f16"]["top1_agreement"] > 0.96  # a few near ties


REFUSED: dict[str, tuple[Edit, str]] = {
    "architecture": ({"architectures": ["Qwen3ForCausalLM"]}, "Qwen3ForCausalLM"),
    "activation": ({"hidden_act": "gelu"}, "gelu"),
    "rope": (
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}},
        "dynamic",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_computes_differently_is_refused(copied: Path, case: str) -> None:
    changes, word = REFUSED[case]
    tiny_model.edit_json(copied / "config.json", **changes)
    with pytest.raises(StageError, match=word):
        gguf.F16.write(copied, copied / "model.gguf")


def test_the_teachers_rotary_embedding_is_demanded_before_the_run() -> None:
    state = json.loads(tiny_model.tokenizer().to_str())
    rope = {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0}
    gguf.F16.demand("LlamaForCausalLM", LlamaConfig(), state)
    with pytest.raises(StageError, match="dynamic"):
        gguf.F16.demand("LlamaForCausalLM", LlamaConfig(rope_parameters=rope), state)


PARTS: dict[str, Edit] = {
    "normalizer": {"normalizer": {"type": "NFC"}},
    "pre-tokenizer": {"pre_tokenizer": {"type": "Metaspace"}},
}


@pytest.mark.parametrize("part", PARTS)
def test_tokenizer_that_the_engine_lacks_is_refused(copied: Path, part: str) -> None:
    tiny_model.edit_json(copied / "tokenizer.json", **PARTS[part])
    with pytest.raises(StageError, match=f"got {part}"):
        gguf.F16.write(copied, copied / "model.gguf")


def test_single_digits_are_named_as_llama_cpp_names_them(copied: Path) -> None:
    state = json.loads((copied / "tokenizer.json").read_bytes())
    digits = {"type": "Digits", "individual_digits": True}
    steps = {"type": "Sequence", "pretokenizers": [digits, state["pre_tokenizer"]]}
    tiny_model.edit_json(copied / "tokenizer.json", pre_tokenizer=steps)
    path = copied / "model.gguf"
    gguf.F16.write(copied, path)
    tokenizer = read_tokenizer(copied / TOKENIZER)
    with Engine(path) as engine:
        for text in ("a  12 3", "½  2²", "x\n\n  7"):
            tokens = tokenizer.encode(text, add_special_tokens=False).ids
            assert engine.first_difference(text, tokens) is None


def test_cut_weights_are_an_error_in_words(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(StageError, match="no readable weights"):
        gguf.F16.write(copied, copied / "model.gguf")


def test_unknown_tensor_is_named(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors") | {"model.extra.weight": torch.zeros(2, 2)}
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"model\.extra\.weight"):
        gguf.F16.write(copied, copied / "model.gguf")


def test_unknown_target_is_named() -> None:
    with pytest.raises(UsageError, match="gguf-q4"):
        find("gguf-q4")


def test_model_in_memory_is_written_alike(
    tiny_student: Artifact, builds: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    path = tmp_path / "teacher.gguf"
    module.write_loaded(
        find("gguf-f16"),
        tiny_model.load(tiny_student.path),
        AutoTokenizer.from_pretrained(tiny_student.path),
        path,
    )
    assert path.read_bytes() == builds["gguf-f16"].read_bytes()
    assert list(tmp_path.iterdir()) == [path]


texts = st.lists(st.lists(st.integers(0, 9), max_size=60), min_size=1, max_size=30)


@given(texts)
def test_chosen_positions_are_within_their_texts(found: list[list[int]]) -> None:
    if all(len(text) < 2 for text in found):
        with pytest.raises(UsageError):
            choose(found)
        return
    samples = choose(found)
    assert 0 < len(samples) <= parity.MAX_TEXTS
    assert sum(len(sample.positions) for sample in samples) <= parity.MAX_POSITIONS
    for sample in samples:
        assert list(sample.tokens) in found
        assert sample.positions == tuple(sorted(set(sample.positions)))
        assert sample.positions
        assert all(0 <= place < len(sample.tokens) - 1 for place in sample.positions)


def test_a_text_as_long_as_the_context_fits_with_its_ends(
    tiny_student: Artifact, builds: dict[str, Path]
) -> None:
    tokenizer = read_tokenizer(tiny_student.path / TOKENIZER)
    ids = tokenizer.encode("".join(TEXTS) * 40, add_special_tokens=False).ids
    assert len(ids) > DEFAULT_CONTEXT
    (sample,) = choose([ids])
    with Engine(builds["gguf-f16"]) as engine:
        parity.check_cut(engine, tokenizer, sample)


def test_the_common_beginning_is_left_out() -> None:
    samples = choose([[1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8]])
    assert [sample.positions for sample in samples] == [(2, 3, 4), (2, 3)]


rows = st.lists(st.floats(-5, 5), min_size=4, max_size=4)


@given(rows, rows)
def test_kl_is_not_negative_and_zero_on_equal(a: list[float], b: list[float]) -> None:
    p, q = (
        torch.log_softmax(torch.tensor([row], dtype=torch.float64), -1).numpy() for row in (a, b)
    )
    sample = [Sample((0, 3), (0,))]
    assert compare(sample, [p], [q]).kl_nats_per_token >= 0
    same = compare(sample, [p], [p])
    assert (same.kl_nats_per_token, same.top1_agreement, same.max_abs_delta_logprob) == (0, 1, 0)


def test_comparison_by_hand() -> None:
    p, q = (
        np.log([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]),
        np.log([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]),
    )
    found = compare([Sample((0, 1, 2), (0, 1))], [p], [q])
    assert found.kl_nats_per_token == pytest.approx(0.125 * np.log(2))
    assert found.top1_agreement == 0.5
    assert found.max_abs_delta_logprob == pytest.approx(np.log(2))
    assert found.mean_abs_delta_logprob == pytest.approx(np.log(2) / 2)
    assert found.positions == 2


def test_four_bits_are_those_that_training_computes_with(copied: Path) -> None:
    """From fp32 weights: through the release and the file, or by `stored`, but for rows' order."""
    model = tiny_model.load(copied)
    masters = {name: values.detach().clone() for name, values in model.named_parameters()}
    release(model, "Q4_0").save_pretrained(copied)
    gguf.Q4_0.write(copied, copied / "model.gguf")
    tensors = {one.name: one for one in GGUFReader(copied / "model.gguf").tensors}
    config = gguf.read_config(copied)
    for target, name, _ in gguf._tensors(copied, config):
        found = quants.dequantize(tensors[target].data, tensors[target].tensor_type)
        wanted = stored(name, masters[name], "Q4_0").numpy()
        if name.rsplit(".", 1)[0].endswith(gguf.ROTATED):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            wanted = gguf.permute(wanted, heads)
        assert np.array_equal(found.reshape(wanted.shape), wanted), name
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert {kinds[f"blk.0.{part}.weight"] for part in ("attn_q", "ffn_down")} == {"Q4_0"}
    embedding = "token_embd.weight"
    assert kinds[embedding] == "Q8_0"


def test_a_weight_that_is_no_number_is_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match="not finite") as caught:
        gguf.Q4_0.write(copied, copied / "model.gguf")
    assert "layers.1.mlp.up_proj" in caught.value.render()


def test_four_bits_have_a_bound_of_their_own(tiny_student: Artifact, tmp_path: Path) -> None:
    tight = ExportConfig(targets=("gguf-q4_0",), max_kl=9.0, q4_0={"max_kl": 1e-6})
    with pytest.raises(StageError, match="gguf-q4_0 is too far from the model") as caught:
        export(tiny_student, tight, TEXTS[:1], store=tmp_path)
    assert "export.q4_0.max_kl" in caught.value.render()
