"""A teacher from nothing but a configuration and text; DeepSeek V4's published configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_teacher as tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from overproof.core.config import find_recipe, load_recipe
from overproof.core.errors import UsageError
from overproof.student import experts, general, scratch
from overproof.student.examples import build_train_set

SHIPPED = Path(__file__).parents[3] / "recipes/configurations/tiny-v4.json"
# As deepseek-ai/DeepSeek-V4-Flash-0731 publishes it; read in copies of it, two of which agree.
PUBLISHED = {
    "architectures": ["DeepseekV4ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 0, "eos_token_id": 1, "expert_dtype": "fp4", "hc_eps": 1e-06, "hc_mult": 4,
    "hc_sinkhorn_iters": 20, "head_dim": 512, "hidden_act": "silu", "hidden_size": 4096,
    "index_head_dim": 128, "index_n_heads": 64, "index_topk": 512, "initializer_range": 0.02,
    "max_position_embeddings": 1048576, "model_type": "deepseek_v4", "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 64, "num_experts_per_tok": 6, "num_hidden_layers": 43,
    "num_hash_layers": 3, "num_key_value_heads": 1, "num_nextn_predict_layers": 1, "o_groups": 8,
    "o_lora_rank": 1024, "q_lora_rank": 1024, "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "scale_fmt": "ue8m0", "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 16, "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "rope_theta": 10000, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus",
    "sliding_window": 128, "swiglu_limit": 10.0, "tie_word_embeddings": False,
    "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.57.1",
    "use_cache": True, "vocab_size": 129280, "compress_rope_theta": 160000,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0, 0, 0],
    "dspark_block_size": 5, "dspark_noise_token_id": 128799,
    "dspark_target_layer_ids": [40, 41, 42], "dspark_markov_rank": 256,
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 5,
    "num_attention_heads": 8, "head_dim": 64, "qk_rope_head_dim": 8, "q_lora_rank": 32,
    "o_lora_rank": 16, "n_routed_experts": 8, "num_experts_per_tok": 3, "index_head_dim": 16,
    "index_n_heads": 4, "hc_sinkhorn_iters": 3, "max_position_embeddings": 4096,
}  # fmt: skip


def written(folder: Path, settings: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return file


def test_the_published_shape_has_the_parameters_that_its_makers_say(tmp_path: Path) -> None:
    config = scratch.config_of(written(tmp_path, PUBLISHED))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert len(experts.blocks(model)) == len(model.model.layers) == 43
    assert experts.known(model)
    count = sum(one.numel() for one in model.parameters())
    assert count == pytest.approx(284e9, rel=0.01)


def test_with_the_published_fields_a_small_one_is_cut_like_any(tmp_path: Path) -> None:
    """Every published field, the 46 ratios among them; only sizes are smaller."""
    tokenizer = scratch.make_tokenizer(tiny.TEXT, 320)
    model = scratch.make_model(written(tmp_path, PUBLISHED | SMALL), tokenizer, 0)
    assert model.config.vocab_size == 320
    kinds = ["sliding_attention"] * 2 + [
        "compressed_sparse_attention", "heavily_compressed_attention", "compressed_sparse_attention"
    ]  # fmt: skip
    assert model.config.layer_types == kinds
    assert not hasattr(model.config, "quantization_config")
    tables = [table for name, table in model.named_buffers() if name.endswith("tid2eid")]
    assert len(tables) == 3
    for table in tables:
        assert all(len({*row}) == 3 for row in table.tolist())
        assert len(table.unique()) == 8
    vocabulary = scratch.whole(tokenizer)
    student = general.cut(general.reduced(model, [0, 2, 4]), vocabulary)
    text = list(range(3, 180))  # one heavily compressed window and a half
    whole = general.reduced(model, [0, 2, 4])
    ids = torch.tensor([text])
    with torch.inference_mode():  # its layers keep their numbers, so it takes no cache
        wanted = whole(ids, use_cache=False).logits
        assert torch.equal(student(ids, use_cache=False).logits, wanted)
    student.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(tiny.alone(again, text), tiny.alone(student, text))
    assert again.config.layer_types == [kinds[0], kinds[2], kinds[4]]


def test_the_shipped_configuration_has_every_published_field() -> None:
    shipped = json.loads(SHIPPED.read_bytes())
    drafts = {name for name in PUBLISHED if name.startswith("dspark")}  # newer weights alone
    assert {*PUBLISHED} - drafts <= {*shipped}
    assert {*shipped} - {*PUBLISHED} == {"compress_rate_hca"}


def test_equal_text_and_seed_give_an_equal_teacher() -> None:
    texts = [*tiny.TEXT, "naïve 日本"] * 3
    tokenizers = [scratch.make_tokenizer(texts, 320) for _ in range(2)]
    assert tokenizers[0].to_str() == tokenizers[1].to_str()
    assert tokenizers[0].get_vocab_size() == 320
    models = [scratch.make_model(SHIPPED, tokenizers[0], seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(values, models[1][name]) for name, values in models[0].items())
    tables = [name for name in models[0] if name.endswith("tid2eid")]
    assert tables
    assert not any(torch.equal(models[0][name], models[2][name]) for name in tables)


def test_every_token_of_a_text_is_learned_and_its_end(tmp_path: Path) -> None:
    tokenizer = scratch.make_tokenizer(tiny.TEXT, 320)
    begin, end = scratch.control(tokenizer)
    examples = scratch.examples_of(["Where is it?", "x" * 500], tokenizer, 40)
    data = build_train_set(
        tmp_path / "set", (), examples, scratch.whole(tokenizer), None, alone=True
    )
    first, second = data.examples
    assert (first[0], first[-1]) == (begin, end)
    assert tokenizer.decode(first[1:-1]) == "Where is it?"
    assert len(second) == 40
    assert data.alone
    learned = data.targets.ids_NK[:, 0][data.weight_N > 0].tolist()
    assert learned == [*first[1:], *second[1:]]


def test_a_prompt_is_shown_as_it_stands() -> None:
    wrapped = scratch.wrapped(scratch.make_tokenizer(tiny.TEXT, 320))
    turns = [{"role": "user", "content": "Where is my"}]
    shown = wrapped.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert shown == f"{scratch.BEGIN}Where is my"


@pytest.mark.parametrize("settings", [{"model_type": "no_such"}, {}, [1], {"model_type": 3}])
def test_what_is_no_configuration_is_told(tmp_path: Path, settings: object) -> None:
    with pytest.raises(UsageError, match="no configuration of a model"):
        scratch.config_of(written(tmp_path, settings))


def test_a_teacher_of_ones_own_has_a_name_of_its_own() -> None:
    for name in ("org/model", "./folder", "a b"):
        with pytest.raises(UsageError, match="is not valid") as caught:
            load_recipe(find_recipe("tiny-v4"), [f"teacher.model={name}"])
        assert "a name of your own" in caught.value.render()


def test_the_published_configuration_is_the_class_s_own_where_it_says_nothing() -> None:
    """transformers' defaults are those of the same model: a field lost would not be seen."""
    ours = AutoConfig.for_model(**{k: v for k, v in PUBLISHED.items() if k not in scratch.STORAGE})
    assert ours.num_hidden_layers == 43
    assert ours.mlp_layer_types == ["hash_moe"] * 3 + ["moe"] * 40
    assert ours.rope_parameters["compress"]["factor"] == 16
    assert ours.rope_parameters["compress"]["rope_theta"] == 160000
    assert ours.rope_parameters["main"]["rope_theta"] == 10000
