"""Students of DeepSeek V4: cut by names, run as wholes, compared with their teacher bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_teacher as tiny
import tiny_v4
import torch
import training
import transformers

from overproof.core.errors import StageError, UsageError
from overproof.core.sections import StudentConfig
from overproof.student import experts, general
from overproof.student.initial import _calibration, demand, load_model, save_model
from overproof.student.saved import rounded
from overproof.teacher.forward import laid, states_at
from overproof.teacher.kept import TopK
from overproof.teacher.signals import shard_signals

TEXT = [5, 300, 17, 8, 44, 91, 7, 7, 250, 31, 12, 40, 9]
IDLE = 2


def config(**changes: object) -> StudentConfig:
    return StudentConfig(**({"name": "s", "layers": 3, "vocabulary": 300} | changes))


@pytest.fixture(scope="module")
def model():
    """Layer `IDLE` adds almost nothing to what passes through it."""
    made = tiny_v4.model()
    layer = made.model.layers[IDLE]
    with torch.no_grad():
        layer.self_attn.o_b_proj.weight.mul_(1e-3)
        layer.mlp.experts.down_proj.mul_(1e-3)
        layer.mlp.shared_experts.down_proj.weight.mul_(1e-3)
        for mixing in (layer.attn_hc, layer.ffn_hc):  # each stream goes on as it is
            mixing.scale.zero_()
            mixing.base.zero_()
            mixing.base[-4:] = torch.tensor([20.0, -20.0, -20.0, 20.0])
    return made


@pytest.fixture(scope="module")
def calibration(model):
    examples = tiny.examples(30)
    signals = shard_signals(model, training.HEAD, examples, training.ROOM, TopK(16))
    return _calibration(training.HEAD, examples, [signals.spread()], 200, training.ROOM, alone=True)


def test_a_student_of_all_layers_experts_and_tokens_is_the_teacher(model, calibration) -> None:
    vocabulary = training.vocabulary()
    wanted = config(layers=4, vocabulary=tiny.TOKENS, experts=tiny_v4.EXPERTS)
    for spare in ("drop", "merge"):
        asked = wanted.model_copy(update={"spare_experts": spare})
        student, facts = general.make(model, vocabulary, calibration, asked, tiny.meter())
        assert facts["kept_layers"] == [0, 1, 2, 3]
        own = vocabulary.student_ids_U[TEXT]
        got, theirs = tiny.alone(student, own), tiny.alone(model, TEXT)
        assert torch.equal(got, theirs[:, vocabulary.teacher_ids_V])


def test_saved_and_loaded_it_says_the_same_to_the_last_bit(model, calibration, tmp_path) -> None:
    asked = config(experts=4, importance="even")
    student, _ = general.make(model, training.vocabulary(300), calibration, asked, tiny.meter())
    student = rounded(student)
    save_model(student, tmp_path)
    again, plain = load_model(tmp_path), student.float()
    kept = {n: v for n, v in plain.named_buffers() if n.endswith(("tid2eid", "bias"))}
    assert kept
    assert all(torch.equal(dict(again.named_buffers())[n], v) for n, v in kept.items())
    ids = torch.tensor([[2, 30, 41, 9, 9, 17]])
    assert torch.equal(again(ids).logits, plain(ids).logits)
    for sampling in ({"do_sample": False}, {"do_sample": True}):
        said = []
        for one in (again, plain):
            torch.manual_seed(1)
            said.append(one.generate(ids, max_new_tokens=30, eos_token_id=None, **sampling))
        assert said[0].shape == (1, 36)
        assert torch.equal(*said)
    assert again.config.n_routed_experts == 4
    assert again.config.num_nextn_predict_layers == 0


def test_only_what_transformers_keeps_in_fp32_stays_so() -> None:
    types = {name: one.dtype for name, one in rounded(tiny_v4.model()).named_parameters()}
    assert types["model.layers.0.attn_hc.fn"] == types["model.norm.weight"] == torch.float32
    assert types["model.layers.0.mlp.experts.down_proj"] == torch.bfloat16
    assert types["lm_head.weight"] == torch.bfloat16
    assert {one.dtype for one in rounded(tiny.model()).parameters()} == {torch.bfloat16}


def test_settings_layer_by_layer_go_with_the_layers(model) -> None:
    smaller = general.reduced(model, [0, 1, 3])
    student = general.cut(smaller, training.vocabulary(300))  # compares the two itself
    csa, window = "compressed_sparse_attention", "sliding_attention"
    assert model.config.layer_types == [window, csa, "heavily_compressed_attention", csa]
    assert student.config.layer_types == [window, csa, csa]
    assert student.config.mlp_layer_types == ["hash_moe", "moe", "moe"]
    assert student.config.num_hidden_layers == len(student.model.layers) == 3
    assert model.config.num_hidden_layers == len(model.model.layers) == 4
    for name, values in smaller.state_dict().items():
        if "layers.2." in name:
            assert torch.equal(values, model.state_dict()[name.replace("s.2.", "s.3.")])


def test_rows_of_kept_tokens_go_with_them(model) -> None:
    vocabulary = training.vocabulary(300)
    student = general.cut(model, vocabulary)
    theirs, mine = model.state_dict(), student.state_dict()
    known = vocabulary.teacher_ids_V >= 0
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.gate.tid2eid"):
        assert torch.equal(mine[name][known], theirs[name][vocabulary.teacher_ids_V[known]])
    assert len(mine["model.layers.0.mlp.gate.tid2eid"]) == vocabulary.size


def test_greedy_drops_the_idle_layer_first(model, calibration) -> None:
    kept, removals = general.choose_layers(model, config(layers=2), calibration, tiny.meter())
    assert removals[0].layer == IDLE
    assert 0 <= removals[0].kl < 0.1 * removals[1].kl
    assert kept == sorted({0, 1, 2, 3} - {one.layer for one in removals})
    assert general.divergence(model, calibration) == pytest.approx(
        general.divergence(general.reduced(model, range(4)), calibration), abs=1e-9
    )


def test_routing_mass_is_what_the_routers_gave(model, calibration) -> None:
    """Against the routers' formula, from the states that enter them."""
    entered: dict[str, list[torch.Tensor]] = {name: [] for name in experts.blocks(model)}
    handles = [
        block.register_forward_pre_hook(lambda _m, given, n=name: entered[n].append(given[0]))
        for name, block in experts.blocks(model).items()
    ]
    choices = general.choose_experts(model, calibration, 4)
    for handle in handles:
        handle.remove()
    assert [*choices] == [f"model.layers.{layer}.mlp" for layer in range(4)]
    used = torch.from_numpy(calibration.batch.segments_RT >= 0)
    tokens = torch.from_numpy(calibration.batch.tokens_RT)[used]
    for layer, choice in enumerate(choices.values()):
        gate = model.model.layers[layer].mlp.gate
        parts, start = [], 0
        for states in entered[f"model.layers.{layer}.mlp"]:
            rows = used[start : start + len(states), : states.shape[1]]
            parts.append(states[rows])
            start += len(states)
        scores = torch.nn.functional.softplus(torch.cat(parts) @ gate.weight.detach().T).sqrt()
        if layer == 0:
            chosen = gate.tid2eid[tokens]
        else:
            chosen = (scores + gate.e_score_correction_bias).topk(tiny_v4.CHOSEN).indices
        weights = scores.gather(1, chosen)
        weights = 1.5 * weights / weights.sum(-1, keepdim=True)
        mass = torch.zeros(tiny_v4.EXPERTS).index_add_(0, chosen.flatten(), weights.flatten())
        torch.testing.assert_close(torch.tensor(choice.mass).float(), mass, rtol=1e-4, atol=1e-4)
        assert set(choice.kept) == set(mass.topk(4).indices.tolist())
        assert [choice.kept[choice.home[one]] for one in choice.kept] == [*choice.kept]


def test_dropped_experts_leave_no_trace(model, calibration) -> None:
    choices = general.choose_experts(model, calibration, 4)
    student = general.cut(model, training.vocabulary(), choices)
    theirs, mine = model.state_dict(), student.state_dict()
    for name, choice in choices.items():
        kept = list(choice.kept)
        for part in (*experts.EXPERT_ROWS, experts.BIAS):
            if f"{name}.{part}" in theirs:
                assert torch.equal(mine[f"{name}.{part}"], theirs[f"{name}.{part}"][kept])
        for part in ("gate_proj", "up_proj", "down_proj"):
            shared = f"{name}.shared_experts.{part}.weight"
            assert torch.equal(mine[shared], theirs[shared])
    table = "model.layers.0.mlp.gate.tid2eid"
    choice = choices["model.layers.0.mlp"]
    order = training.vocabulary().teacher_ids_V
    for row, expert_row in zip(mine[table], theirs[table][order], strict=True):
        for new, old in zip(row.tolist(), expert_row.tolist(), strict=True):
            assert new == choice.home[old]
            assert choice.kept[new] == old or old not in choice.kept
    student(torch.tensor([TEXT]))


def alike(pairs: bool):
    """Twins in the layer that routes by token; all experts of the other layers are one."""
    made = tiny_v4.model(seed=4)
    with torch.no_grad():
        for layer, block in enumerate(experts.blocks(made).values()):
            rows = torch.arange(tiny_v4.EXPERTS)
            source = rows // 2 * 2 if layer == 0 and pairs else torch.zeros_like(rows)
            block.experts.gate_up_proj.copy_(block.experts.gate_up_proj[source])
            block.experts.down_proj.copy_(block.experts.down_proj[source])
            if layer == 0 and pairs:
                block.gate.weight.copy_(block.gate.weight[source])
    return made


@pytest.mark.parametrize("spare", ["merge", "drop"])
def test_merging_identical_experts_changes_nothing_but_rounding(spare: str) -> None:
    made = alike(pairs=True)
    examples = tiny.examples(40)
    signals = shard_signals(made, training.HEAD, examples, training.ROOM, TopK(4))
    text = _calibration(training.HEAD, examples, [signals.spread()], 400, training.ROOM, alone=True)
    choices = general.choose_experts(made, text, 4)
    # Which of two twins is used more is chance: those that stay are made one of each.
    twins = experts.Use(
        torch.tensor([2.0, 1.0] * 4), torch.eye(4).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )
    choices["model.layers.0.mlp"] = experts.choose(twins, 4)
    assert choices["model.layers.0.mlp"].home == (0, 0, 1, 1, 2, 2, 3, 3)
    student = general.cut(made, training.vocabulary(), choices, merge=spare == "merge")
    own = training.vocabulary()
    got = tiny.alone(student, own.student_ids_U[TEXT])
    torch.testing.assert_close(
        got, tiny.alone(made, TEXT)[:, own.teacher_ids_V], rtol=1e-4, atol=1e-4
    )


def test_a_merged_expert_is_the_mean_by_use() -> None:
    use = experts.Use(
        torch.tensor([6.0, 2.0, 1.0]),
        torch.tensor([[1.0, 0.0, 0.9], [0.0, 1.0, 0.1], [0.9, 0.1, 1.0]]),
    )
    choice = experts.choose(use, 2)
    assert choice == experts.Choice((0, 1), (0, 1, 0), (6.0, 2.0, 1.0))
    rows = torch.arange(6.0).view(3, 2)
    state = {f"m.{part}": rows for part in experts.EXPERT_ROWS}
    state["m.gate.tid2eid"] = torch.tensor([[0, 2], [1, 2]])
    merged = experts.apply(state, "m", choice, merge=True)
    wanted = torch.stack([(6 * rows[0] + rows[2]) / 7, rows[1]])
    for part in experts.EXPERT_ROWS:
        torch.testing.assert_close(merged[f"m.{part}"], wanted)
    assert merged["m.gate.tid2eid"].tolist() == [[0, 0], [1, 0]]
    assert f"m.{experts.BIAS}" not in merged


def test_states_do_not_depend_on_what_fills_a_row(model) -> None:
    texts = [(5, 6, 7), (8,) * 20, (9, 10)]
    packed = laid(model, (1, 2), texts, 32)
    assert len(packed.tokens_RT) == 3
    wanted = np.ones(25, np.bool_)
    found = torch.zeros(25, 64)
    for where, hidden in states_at(model, packed, wanted, 2):
        found[torch.from_numpy(where)] = hidden
    start = 0
    for text in texts:
        with torch.inference_mode():
            alone = model.model(torch.tensor([[1, 2, *text]])).last_hidden_state[0, 2:]
        torch.testing.assert_close(found[start : start + len(text)], alone, atol=1e-4, rtol=1e-4)
        start += len(text)


def test_what_the_general_way_cannot_do_is_refused_before_any_work(model) -> None:
    general.demand_fit(model, config(experts=4))
    for changes, said in (
        ({"mlp_width": 16}, r"student\.mlp_width: not for DeepseekV4ForCausalLM"),
        ({"importance": "angular"}, "angular: not for DeepseekV4ForCausalLM"),
        ({"layers": 5}, "larger than the model that it is cut from"),
        ({"experts": 9}, r"student\.experts is 9"),
        ({"experts": 1}, r"student\.experts is 1"),
    ):
        with pytest.raises(UsageError, match=said):
            general.demand_fit(model, config(**changes))
    with pytest.raises(UsageError, match="goes with a mixture of experts"):
        demand(tiny.teacher(), tiny.teacher(), config(experts=2))


SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": tiny.TOKENS, "pad_token_id": 0,
}  # fmt: skip
MIXTURE = {
    "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "decoder_sparse_step": 1, "norm_topk_prob": True,
}  # fmt: skip


def architecture(name: str, **changes: object):
    torch.manual_seed(0)
    settings = getattr(transformers, f"{name}Config")(**(SMALL | changes))
    return getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(settings).float().eval()


@pytest.mark.parametrize(
    ("name", "changes", "asked"),
    [
        ("Mixtral", MIXTURE, {"experts": 3}),
        ("Qwen3Moe", MIXTURE, {"experts": 3, "spare_experts": "merge"}),
        ("Gemma3Text", {}, {}),
        ("Olmo2", {}, {}),
    ],
)
def test_other_architectures_go_the_same_way(name, changes, asked, calibration) -> None:
    teacher = architecture(name, **changes)
    wanted = config(layers=2, importance="even", **asked)
    general.demand_fit(teacher, wanted)
    vocabulary = training.vocabulary(300)
    student, facts = general.make(teacher, vocabulary, calibration, wanted, tiny.meter())
    assert facts["kept_layers"] == [0, 2]
    assert student(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, vocabulary.size)
    if asked:
        assert len(student.model.layers[0].mlp.experts.down_proj) == 3


@pytest.mark.parametrize(
    ("name", "changes"),
    [("Cohere", {"logit_scale": 0.5}), ("Granite", {"logits_scaling": 8.0})],
)
def test_logits_that_are_more_than_head_and_states_are_refused(name, changes) -> None:
    with pytest.raises(StageError, match="cannot be cut") as caught:
        general.demand_fit(architecture(name, **changes), config(layers=2))
    assert "nats from its own" in caught.value.render()
