from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny_teacher as tiny
import torch
import training
import transformers

from overproof.core.errors import StageError, UsageError
from overproof.core.sections import StudentConfig
from overproof.data.pack import pack
from overproof.student import shape
from overproof.student.examples import respell
from overproof.student.importance import choose_layers
from overproof.student.initial import _calibration, load_model, save_model
from overproof.student.stack import demand_decoder
from overproof.teacher.kept import TopK
from overproof.teacher.signals import shard_signals

LAYERS, IDLE = 5, 2


def config(**changes: object) -> StudentConfig:
    return StudentConfig(**({"name": "s", "layers": 3, "vocabulary": 300} | changes))


@pytest.fixture(scope="module")
def teacher():
    """Layer `IDLE` adds almost nothing to what passes through it."""
    made = tiny.model(layers=LAYERS)
    with torch.no_grad():
        made.model.layers[IDLE].mlp.down_proj.weight.mul_(1e-3)
        made.model.layers[IDLE].self_attn.o_proj.weight.mul_(1e-3)
    return made


@pytest.fixture(scope="module")
def calibration(teacher):
    examples = tiny.examples(30)
    signals = shard_signals(teacher, training.HEAD, examples, training.ROOM, TopK(16))
    return _calibration(training.HEAD, examples, [signals.spread()], 200, training.ROOM)


def test_a_student_larger_than_its_teacher_is_refused(teacher) -> None:
    width = teacher.config.intermediate_size
    shape.demand_fit(teacher, config(layers=LAYERS, mlp_width=width))
    large = config(layers=LAYERS + 1, mlp_width=width + 1)
    with pytest.raises(UsageError, match="larger than the model") as caught:
        shape.demand_fit(teacher, large)
    assert len(caught.value.details) == 2


def test_greedy_drops_the_idle_layer_first(teacher, calibration) -> None:
    progress = tiny.meter()
    kept, removals = choose_layers(teacher, config(layers=3), calibration, progress)
    assert removals[0].layer == IDLE
    assert len(kept) == 3
    assert kept == sorted(set(range(LAYERS)) - {one.layer for one in removals})
    assert 0 <= removals[0].kl < 1e-2 < removals[1].kl


def test_the_measured_divergence_is_that_of_the_model_without_the_layers(
    teacher, calibration
) -> None:
    from overproof.student.losses import Sparse, divergence_of
    from overproof.teacher.forward import model_inputs

    kept, removals = choose_layers(teacher, config(layers=3), calibration, tiny.meter())
    smaller = tiny.model(layers=LAYERS)
    smaller.load_state_dict(teacher.state_dict())
    smaller.model.layers = torch.nn.ModuleList(smaller.model.layers[layer] for layer in kept)
    with torch.inference_mode():
        logits = smaller(**model_inputs(calibration.batch, torch.float32)).logits
    target = Sparse.of(calibration.ids_PK, calibration.probs_PK)
    loss, _ = divergence_of(logits[calibration.picked], target)
    assert removals[-1].kl == pytest.approx(float(loss.mean()), rel=1e-4)


def test_angular_drops_one_block(teacher, calibration) -> None:
    wanted = config(layers=4, importance="angular")
    kept, removals = choose_layers(teacher, wanted, calibration, tiny.meter())
    assert [one.layer for one in removals] == [IDLE]
    assert kept == [0, 1, 3, 4]
    kept, removals = choose_layers(
        teacher, config(layers=2, importance="angular"), calibration, tiny.meter()
    )
    block = [one.layer for one in removals]
    assert block == list(range(block[0], block[0] + 3))
    assert 0 in kept  # the first layer makes states out of embeddings


@pytest.mark.parametrize(("layers", "kept"), [(5, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (1, [0])])
def test_even(teacher, calibration, layers: int, kept: list[int]) -> None:
    wanted = config(layers=layers, importance="even")
    assert choose_layers(teacher, wanted, calibration, tiny.meter()) == (kept, [])


@pytest.mark.parametrize("importance", ["greedy-kl", "angular", "even"])
def test_all_layers_may_stay_but_no_more(teacher, calibration, importance: str) -> None:
    wanted = config(layers=LAYERS, importance=importance)
    kept, _ = choose_layers(teacher, wanted, calibration, tiny.meter())
    assert kept == list(range(LAYERS))
    with pytest.raises(UsageError, match=r"student\.layers is 6") as caught:
        wanted = config(layers=LAYERS + 1, importance=importance)
        choose_layers(teacher, wanted, calibration, tiny.meter())
    assert "is cut from has 5 layers" in caught.value.render()


@pytest.mark.parametrize("tied", [True, False])
def test_cut_keeps_the_weights(tied: bool) -> None:
    teacher = tiny.model(layers=4, tie_word_embeddings=tied)
    before = {name: values.clone() for name, values in teacher.state_dict().items()}
    vocabulary = training.vocabulary(300)
    student = shape.cut(teacher, [0, 3], vocabulary)
    assert student.config.num_hidden_layers == len(student.model.layers) == 2
    assert student.config.vocab_size == student.lm_head.weight.shape[0] == 300
    for new, old in ((0, 0), (1, 3)):
        for name, values in student.model.layers[new].state_dict().items():
            assert torch.equal(values, before[f"model.layers.{old}.{name}"])
    rows = vocabulary.teacher_ids_V
    known = rows >= 0
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(student.state_dict()[name][known], before[name][rows[known]])
    assert student.config.eos_token_id is student.config.bos_token_id is None  # see `initial`
    assert (student.lm_head.weight is student.model.embed_tokens.weight) == tied
    assert all(torch.equal(values, before[name]) for name, values in teacher.state_dict().items())


def test_a_student_of_all_layers_and_tokens_is_the_teacher() -> None:
    teacher = tiny.model()
    vocabulary = training.vocabulary()
    student = shape.cut(teacher, [0, 1, 2], vocabulary)
    text = [5, 300, 17, 8]
    torch.testing.assert_close(
        tiny.alone(student, vocabulary.student_ids_U[text]),
        tiny.alone(teacher, text)[:, vocabulary.teacher_ids_V],
    )


def test_repair_lowers_the_error_of_the_states(teacher) -> None:
    vocabulary, kept = training.vocabulary(), [0, 2, 4]
    texts = [respell(one, vocabulary).tokens for one in tiny.examples(300)]
    batch = pack(training.HEAD, texts, training.ROOM)
    student = shape.cut(teacher, kept, vocabulary)
    before = _state_error(student, teacher, texts[:20])
    steps: list[int] = []
    errors = shape.repair(student, teacher, kept, batch, vocabulary, steps.append)
    after = _state_error(student, teacher, texts[:20])
    assert after < 0.9 * before
    assert len(errors) == len(kept)
    assert errors[-1] == pytest.approx(after, rel=0.3)
    assert steps == [1, 1, 1]


def test_where_nothing_is_dropped_nothing_is_changed(teacher) -> None:
    """Not by rounding either: targets come from a copy in bf16 where the processor likes it."""
    vocabulary = training.vocabulary()
    texts = [respell(one, vocabulary).tokens for one in tiny.examples(60)]
    batch = pack(training.HEAD, texts, training.ROOM)
    half = copy.deepcopy(teacher).bfloat16()
    for kept, same in (([0, 1, 2, 3, 4], 5), ([0, 1, 3, 4], 1)):
        student = shape.cut(teacher, kept, vocabulary)
        errors = shape.repair(student, half, kept, batch, vocabulary, lambda _: None)
        for place, layer in enumerate(kept):
            ours = student.model.layers[place].state_dict()
            theirs = teacher.model.layers[layer].state_dict()
            equal = all(torch.equal(values, theirs[name]) for name, values in ours.items())
            assert equal == (place < same)
        assert max(errors[:same]) < 0.02


def test_narrowing_keeps_the_neurons_that_matter(teacher, tmp_path) -> None:
    vocabulary, kept = training.vocabulary(), [0, 2, 4]
    wide = teacher.config.intermediate_size
    texts = [respell(one, vocabulary).tokens for one in tiny.examples(300)]
    batch = pack(training.HEAD, texts, training.ROOM)
    student = shape.cut(teacher, kept, vocabulary)
    loud = torch.arange(0, wide, 2)
    with torch.no_grad():  # every second neuron of the first MLP says nothing
        student.model.layers[0].mlp.down_proj.weight[:, 1::2] = 0.0
    gates = student.model.layers[0].mlp.gate_proj.weight[loud].clone()
    shape.repair(
        student,
        teacher,
        kept,
        batch,
        vocabulary,
        lambda _: None,
        narrowed=shape.Narrowed(mlp_width=wide // 2),
    )
    assert torch.equal(student.model.layers[0].mlp.gate_proj.weight, gates)
    assert student.config.intermediate_size == wide // 2
    save_model(student, tmp_path)
    again = load_model(tmp_path)
    assert torch.equal(tiny.alone(again, texts[0]), tiny.alone(student, texts[0]))


def _state_error(student, teacher, texts) -> float:
    """Mean relative distance of the states before the last norm, example by example."""
    ends: dict[str, torch.Tensor] = {}
    gaps = []
    for name, model in (("student", student), ("teacher", teacher)):
        model.model.norm.register_forward_pre_hook(
            lambda _m, given, name=name: ends.update({name: given[0]})
        )
    for text in texts:
        for model in (student, teacher):
            tiny.alone(model, [*training.HEAD, *text])
        gap = (ends["student"] - ends["teacher"]).norm(dim=-1) / ends["teacher"].norm(dim=-1)
        gaps.append(float(gap.mean()))
    for model in (student, teacher):
        model.model.norm._forward_pre_hooks.clear()
    return float(np.mean(gaps))


def test_another_architecture_is_refused_in_words() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=10))
    with pytest.raises(StageError, match="GPT2LMHeadModel cannot be cut") as caught:
        demand_decoder(other)
    assert "Llama" in caught.value.render()
    demand_decoder(tiny.model())


SMALL = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": tiny.TOKENS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def architecture(name: str, **changes: object):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(SMALL | changes))
    made = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
    return made(config).float().eval()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(("Llama", {}), ("Mistral", {}), ("Qwen2", {}), ("Qwen3", {})),
        *(("Gemma", {}), ("Llama", {"tie_word_embeddings": True})),
        ("SmolLM3", {"no_rope_layers": [1, 1, 0, 1, 0]}),  # 0: no rotary positions
    ],
)
def test_plain_stacks_are_cut_as_their_layers_run(name: str, changes: dict[str, object]) -> None:
    teacher = architecture(name, **changes)
    shape.demand_fit(teacher, config(layers=3))
    kept, vocabulary = [0, 2, 3], training.vocabulary(300)
    student = shape.cut(teacher, kept, vocabulary)  # compares the two itself
    assert len(student.model.layers) == 3
    assert student.config.vocab_size == vocabulary.size
    if name == "SmolLM3":
        assert student.config.no_rope_layers == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Gemma2", {"final_logit_softcapping": 1.0}),
        ("Gemma3Text", {}),
        ("Granite", {"logits_scaling": 8.0, "embedding_multiplier": 12.0}),
        ("Cohere", {}),
    ],
)
def test_what_is_more_than_a_stack_is_refused(name: str, changes: dict[str, object]) -> None:
    teacher = architecture(name, **changes)
    with pytest.raises(StageError, match=r"no plain stack|cannot be cut") as caught:
        shape.demand_fit(teacher, config(layers=3))
    assert "Llama, Mistral" in caught.value.render()


def test_a_cut_that_runs_otherwise_is_refused() -> None:
    """A setting of the layers that the cut does not know, here their number in a divisor."""
    teacher = architecture("Llama")
    for layer in teacher.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda _module, _given, out: out * 2)
    with pytest.raises(StageError, match="LlamaForCausalLM cannot be cut"):
        shape.cut(teacher, [0, 2, 3], training.vocabulary(300))


def test_a_model_that_looks_at_its_neighbours_in_a_sequence_is_refused() -> None:
    """One that makes its own mask, or counts its own positions, whatever it is given."""
    for ignored in ("attention_mask", "position_ids"):
        teacher = architecture("Llama")
        body, plain = teacher.model, teacher.model.forward
        body.forward = lambda *args, plain=plain, ignored=ignored, **given: plain(
            *args, **{name: value for name, value in given.items() if name != ignored}
        )
        with pytest.raises(StageError, match="no plain stack"):
            shape.demand_fit(teacher, config(layers=3))
