"""What a student learns from a teacher of other tokens, against dense references in fp64."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from overproof.core.methods import Jsd
from overproof.student.across import Place, align, build_cell_set, masses
from overproof.student.align import Side, spans
from overproof.student.cells import Cells
from overproof.student.common import Common
from overproof.student.divergences import FORWARD_KL, divergence
from overproof.student.losses import Sparse, divergence_of
from overproof.student.retokenise import Both, Writer, side_of
from overproof.student.vocabulary import trim
from overproof.teacher.answers import Answers
from overproof.teacher.example import Example
from overproof.teacher.kept import Sampled, Spread, TopK
from overproof.teacher.prompts import Asked
from overproof.teacher.request import Request
from overproof.teacher.signals import shard_signals
from overproof.teacher.tokens import byte_level

# --- a text model small enough to be written out -------------------------------------------------

FP32 = 1e-6
LONGEST = 3  # teacher tokens of a text, its end aside


def bpe(*merges: str) -> Side:
    """A tokenizer over the letters a, b and c with these merges; its end is the last token."""
    letters = ["a", "b", "c"]
    joined = [merge.replace(" ", "") for merge in merges]
    vocabulary = {text: number for number, text in enumerate([*letters, *joined])}
    made = Tokenizer(models.BPE(vocabulary, [tuple(merge.split()) for merge in merges]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("</s>", special=True)])
    return Side.of(made, byte_level(made), (len(vocabulary),))


@cache
def texts(teacher_merges: tuple[str, ...]) -> dict[tuple[int, ...], float]:
    """A teacher written out: the probability of each text, as its own tokens, the end at last."""
    teacher = bpe(*teacher_merges)
    rng, found = np.random.default_rng(3), {}
    for size in range(LONGEST + 1):
        for tokens in itertools.product(range(teacher.ends[0]), repeat=size):
            # A teacher says its tokens as its tokenizer cuts the text.
            if tuple(teacher.cut(teacher.text(tokens).decode())) == tokens:
                found[(*tokens, teacher.ends[0])] = float(rng.gamma(0.5))
    total = sum(found.values())
    return {tokens: mass / total for tokens, mass in found.items()}


@cache
def next_probs(theirs: tuple[str, ...], before: tuple[int, ...]) -> np.ndarray:
    """The teacher's distribution behind some tokens."""
    mass = np.zeros(bpe(*theirs).rows)
    for tokens, probability in texts(theirs).items():
        if tokens[: len(before)] == before and len(tokens) > len(before):
            mass[tokens[len(before)]] += probability
    return mass / mass.sum()


@cache
def cut_anew(theirs: tuple[str, ...], ours: tuple[str, ...]) -> dict[tuple[int, ...], list[int]]:
    """Each text of the teacher's in the student's tokens."""
    teacher, student = bpe(*theirs), bpe(*ours)
    return {
        tokens: [*student.cut(teacher.text(tokens).decode()), student.ends[0]]
        for tokens in texts(theirs)
    }


def exact(theirs: tuple[str, ...], ours: tuple[str, ...]) -> np.ndarray:
    """The probability of each first token of the student's, from all texts."""
    mass = np.zeros(bpe(*ours).rows)
    for tokens, answer in cut_anew(theirs, ours).items():
        mass[answer[0]] += texts(theirs)[tokens]
    return mass


PAIRS = [
    ((), ("a b",)),
    (("a b",), ()),
    (("a b",), ("a b", "ab c")),
    (("a b", "b c"), ("a b", "ab c", "c c")),
    (("a b", "ab c", "a c"), ("a b", "b a", "c a")),
    (("b c", "a bc"), ("a b", "ab a")),
    (("a a", "b b"), ("a a", "aa a", "aaa b")),
]


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_a_cell_has_one_mass_whichever_side_counts_it(theirs, ours) -> None:
    """The mass of a cell in teacher tokens is that in the student's, text by text."""
    common = Common.of(bpe(*theirs), bpe(*ours))
    of_teacher = np.bincount(common.cell_U, next_probs(theirs, ()), common.cells)
    of_student = np.bincount(common.cell_V, exact(theirs, ours), common.cells)
    apart = sum(
        texts(theirs)[tokens]
        for tokens, answer in cut_anew(theirs, ours).items()
        if common.cell_U[tokens[0]] != common.cell_V[answer[0]]
    )
    assert np.abs(of_teacher - of_student).sum() <= 2 * apart + FP32
    assert apart < 0.1


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_the_chained_mass_is_the_probability_of_the_students_token(theirs, ours) -> None:
    """On every text of the teacher's, wherever the mass is said to be known."""
    teacher, student = bpe(*theirs), bpe(*ours)
    common, p_V = Common.of(teacher, student), exact(theirs, ours)
    wrong, known = cut_otherwise(theirs, ours), 0
    for tokens, answer in cut_anew(theirs, ours).items():
        if common.cell_U[tokens[0]] != common.cell_V[answer[0]]:
            continue
        place = placed(spans(student.texts(answer), teacher.texts(tokens))[0], answer, tokens)
        rows = [next_probs(theirs, tokens[:size]) for size in range(len(tokens))]
        (found,) = masses(whole(np.array(rows)), [place], common)
        known += not np.isnan(found)
        assert np.isnan(found) or abs(found - p_V[answer[0]]) <= wrong + FP32, (tokens, answer)
    assert known > len(texts(theirs)) / 3
    assert wrong < 0.15


def cut_otherwise(theirs: tuple[str, ...], ours: tuple[str, ...]) -> float:
    """Mass of texts whose first token of the student's ends inside a later one of the teacher's,
    or which one side cuts otherwise than it cuts the other's token."""
    teacher, student, total = bpe(*theirs), bpe(*ours), 0.0
    common = Common.of(teacher, student)
    for tokens, answer in cut_anew(theirs, ours).items():
        if len(answer) == 1:
            continue
        chain = teacher.pieces(student.bytes_of[answer[0]])
        if tokens[: len(chain)] != chain and common.first_U[tokens[0]] != answer[0]:
            total += texts(theirs)[tokens]
    return total


def placed(span, answer, tokens):
    rows = tuple(span.theirs)
    after = rows[-1] + 1 if rows[-1] + 1 < len(tokens) else -1
    said = tuple(tokens[row] for row in rows)
    return Place(0, rows, said, answer[span.ours[0]], len(span.ours) == 1, after)


def whole(probs: np.ndarray) -> Spread:
    """Distributions of which every token is kept."""
    ids = torch.arange(probs.shape[1]).expand(probs.shape)
    order = torch.from_numpy(probs).float().argsort(-1, descending=True)
    return Spread(
        ids.gather(1, order), torch.from_numpy(probs).float().gather(1, order), ids[:, :0]
    )


# --- the loss ------------------------------------------------------------------------------------


def target(cells: int, own: list[int], cell_V: torch.Tensor, kept: int, seed: int = 0):
    """A random target over cells and the own token, fp64; and all of it, dense."""
    rng = np.random.default_rng(seed)
    p_NC = torch.from_numpy(rng.dirichlet(np.full(cells + 1, 0.3), len(own)))
    none = torch.tensor([one < 0 for one in own])
    p_NC[none, -1] = 0.0
    p_NC /= p_NC.sum(-1, keepdim=True)
    probs, ids = p_NC.topk(kept, dim=-1)
    return Cells(Sparse.of(ids, probs), cell_V, cells, torch.tensor(own)), p_NC


def in_cells(q_NV: torch.Tensor, own: list[int], cell_V: torch.Tensor, cells: int) -> torch.Tensor:
    """The student's mass of each cell and, behind them, of the own token: by the definition."""
    found = []
    for q_V, one in zip(q_NV, own, strict=True):
        masses = [
            sum((q_V[v] for v in range(len(q_V)) if cell_V[v] == c and v != one), q_V[0] * 0)
            for c in range(cells)
        ]
        found.append(torch.stack([*masses, q_V[one] if one >= 0 else q_V[0] * 0]))
    return torch.stack(found)


CELL_V = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 0])
OWN = [1, -1, 4, 8, 0]


@pytest.mark.parametrize("kept", [6, 3])
def test_the_loss_and_its_gradient_are_those_of_the_cells(kept: int) -> None:
    """With all cells kept, and with three of them and a tail."""
    made, p_NC = target(5, OWN, CELL_V, kept)
    logits = torch.randn(5, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = (2 * logits).requires_grad_()
    found, grad = divergence_of(logits.detach(), made)
    q_NC = in_cells(torch.softmax(logits, -1), OWN, CELL_V, 5)
    if kept < 6:
        ids = p_NC.topk(kept, dim=-1).indices
        p, q = p_NC.gather(1, ids), q_NC.gather(1, ids)
        p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)
        q = torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1)
    else:
        p, q = p_NC, q_NC
    wanted = (torch.xlogy(p, p) - torch.where(p > 0, p * q.clamp_min(1e-300).log(), 0.0)).sum(-1)
    torch.testing.assert_close(found, wanted.detach())
    (by_hand,) = torch.autograd.grad(wanted.sum(), logits)
    torch.testing.assert_close(grad, by_hand)


@pytest.mark.parametrize("kept", [6, 3])
def test_every_divergence_is_none_where_the_cells_agree(kept: int) -> None:
    made, p_NC = target(5, OWN, CELL_V, kept)
    shares = torch.rand(5, 10, dtype=torch.float64) + 0.1
    q_NV = torch.zeros(5, 10, dtype=torch.float64)
    for row, own in enumerate(OWN):
        for cell in range(5):
            members = [v for v in range(10) if CELL_V[v] == cell and v != own]
            if members:
                q_NV[row, members] = p_NC[row, cell] * shares[row, members]
                q_NV[row, members] /= shares[row, members].sum()
        if own >= 0:
            q_NV[row, own] = p_NC[row, 5]
    empty = [row for row, own in enumerate(OWN) if own >= 0 and (CELL_V[own] == CELL_V).sum() < 2]
    assert not empty
    for made_small in (FORWARD_KL, divergence(Jsd(kind="jsd"))):
        found, grad = divergence_of(q_NV.clamp_min(1e-300).log(), made, made_small)
        torch.testing.assert_close(found, torch.zeros(5, dtype=torch.float64))
        torch.testing.assert_close(grad, torch.zeros(5, 10, dtype=torch.float64))


def test_without_anything_in_common_but_each_token_it_is_the_plain_divergence() -> None:
    logits = torch.randn(5, 10, dtype=torch.float64)
    p = torch.softmax(torch.randn(5, 10, dtype=torch.float64), -1)
    probs, ids = p.topk(10, dim=-1)
    plain = Sparse.of(ids, probs)
    made = Cells(plain, torch.arange(10), 10, torch.full((5,), -1))
    for one, other in zip(divergence_of(logits, made), divergence_of(logits, plain), strict=True):
        torch.testing.assert_close(one, other)


# --- the training set ----------------------------------------------------------------------------

TEXTS = (
    "Where is my parcel 123456?",
    "Refund the payment of 1234 euro, naïve café 日本 😀",
    "Why?",
)


@cache
def conversations() -> tuple[Answers, Answers, dict[str, str]]:
    """What a teacher said to some prompts, in its tokens and in the other model's."""
    teacher, base = tiny.teacher(), tiny.other()
    texts = {f"key-{number}": text for number, text in enumerate(TEXTS)}
    heard, asks = [], {}
    for key, text in texts.items():
        answer = teacher.tokenizer.backend_tokenizer.encode(text[::-1] + " Monday 2026").ids
        ended = (*answer, 0) if key != "key-2" else tuple(answer)
        heard.append(Example(key, tuple(teacher.prompt_ids(text, None)[2:]), ended))
        asks[key] = Request.make(key, base.prompt_ids(text, None)[1:], 0)
    head = tuple(teacher.prompt_ids("any", None)[:2])
    asked = Asked((0,), (0,), {"train.jsonl": list(asks.values())}, texts, {}, {})
    writer = Writer(side_of(teacher), side_of(base), asked)
    told = [writer.write(one) for one in heard]
    return (
        Answers(head, head, heard, heard, heard, {}, {}),
        Answers((0,), (0,), told, told, told, {}, {}),
        texts,
    )


def vocabulary(size: int = 420):
    mass = 1.0 / (1.0 + np.arange(420))
    return trim(tiny.other_tokenizer(), mass, size, tiny.OTHER_CONTROL)


def pair(made) -> Both:
    heard, told, texts = conversations()
    ours = made.tokenizer
    student = Side.of(ours, byte_level(ours), made.ends([1]))
    return Both(heard, told, texts, side_of(tiny.teacher()), student)


def test_the_answers_are_the_same_text_with_the_bases_own_end() -> None:
    heard, told, _ = conversations()
    teacher, base = side_of(tiny.teacher()), side_of(tiny.other())
    for one, other in zip(heard.train, told.train, strict=True):
        assert teacher.text(one.answer) == base.text(other.answer)
        assert (one.answer[-1] == 0) == (other.answer[-1] == 1)
        assert other.prompt[-1] == 3  # <assistant>


def test_an_answer_that_was_cut_inside_a_character_ends_before_it() -> None:
    heard, _, _ = conversations()
    teacher, base = side_of(tiny.teacher()), side_of(tiny.other())
    smile = teacher.cut("a😀")
    writer = Writer(teacher, base, Asked((), (), {}, {}, {}, {}))
    assert len(smile) == 5
    assert writer._answer(Example("k", (), tuple(smile[:3]))) == tuple(base.cut("a"))
    assert writer._answer(Example("k", (), (*smile, 0))) == (*base.cut("a😀"), 1)
    assert heard.train


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("size", [420, 330])
def test_targets_are_the_cells_of_the_teachers_distributions(
    tmp_path: Path, size: int, prompts: bool
) -> None:
    """Every position, from the teacher's logits by the definition, in fp64."""
    made, model = vocabulary(size), tiny.model()
    both = pair(made)
    common = Common.of(both.teacher, both.student)
    kept = TopK(tiny.TOKENS, prompts=prompts)
    signals = shard_signals(model, both.heard.prefix, both.heard.train, 128, kept).spread()
    data = build_cell_set(tmp_path / "set", both, made, [signals], prompts=prompts)
    start, split = 0, 0
    for heard, told in zip(both.heard.train, both.told.train, strict=True):
        one = align(heard, told, both.texts[heard.key], both, made, prompts=prompts)
        logits = tiny.alone(model, [*both.heard.prefix, *heard.tokens]).double()
        first = len(both.heard.prefix) + heard.targets(prompt=prompts).start
        p_nU = torch.softmax(logits[first:-1], -1).numpy()
        places = {place.at: place for place in one.places}
        asked = len(made.spell(told.prompt))
        for at, token in enumerate(one.student.tokens[1:]):
            weight, own = data.weight_N[start + at], data.targets.own_N[start + at]
            assert weight == (at >= asked - 1 or (prompts and at in one.learned))
            if not weight:
                continue
            mass = np.zeros(common.cells + 1)
            place = places.get(at)
            if place and common.cell_U[place.said[0]] == common.cell_V[token]:
                assert own in (-1, token)
                np.add.at(mass, common.cell_U, p_nU[place.rows[0]])
                if own >= 0:
                    split += 1
                    (taken,) = masses(whole(p_nU), [place], common)
                    mass[[common.cell_V[token], -1]] += [-taken, taken]
            else:
                mass[common.cell_V[token] if own < 0 else -1] = 1.0
                assert (own < 0) == common.alone_V[token]
            got = np.zeros(common.cells + 1)
            np.add.at(got, data.targets.ids_NK[start + at], data.targets.probs_NK[start + at])
            np.testing.assert_allclose(got, mass, atol=2e-3)  # log-probabilities are kept in fp16
        start += len(one.student.tokens)
    assert start == len(data.tokens_N)
    assert split > 3


def test_draws_give_the_same_masses_in_the_mean() -> None:
    """Also those of the chain, which is a product: the draws of two positions are independent."""
    both, model = pair(vocabulary()), tiny.model()
    common = Common.of(both.teacher, both.student)
    heard, told = both.heard.train[1], both.told.train[1]
    places = align(heard, told, both.texts[heard.key], both, vocabulary(), prompts=False).places
    chained = [place for place in places if place.whole and len(place.said) > 1]
    assert chained
    rows = shard_signals(model, both.heard.prefix, [heard], 128, TopK(tiny.TOKENS)).spread()
    p_NU = torch.zeros(len(rows.ids_NK), tiny.TOKENS).scatter(1, rows.ids_NK, rows.probs_NK)
    p_NU = (40 * p_NU).softmax(-1)  # sharper than a random model's: a product of few draws
    wanted, found = masses(whole(p_NU.numpy()), chained, common), []
    for seed in range(400):
        source = torch.Generator().manual_seed(seed)
        signals = Sampled(40).empty(len(p_NU))
        drawn = torch.multinomial(p_NU, 40, replacement=True, generator=source)
        signals.drawn_NR[:] = drawn.sort(-1).values
        found.append(masses(signals.spread(), chained, common))
    mean, spread = np.mean(found, 0), np.std(found, 0) / 20
    assert (np.abs(mean - wanted) <= 4 * spread + 1e-4).all()


def test_what_is_learned_from_says_how_it_was_made(tmp_path: Path) -> None:
    made = vocabulary()
    both = pair(made)
    kept = Sampled(20)
    signals = shard_signals(tiny.model(), both.heard.prefix, both.heard.train, 128, kept).spread()
    first = build_cell_set(tmp_path / "a", both, made, [signals])
    again = build_cell_set(tmp_path / "b", both, made, [signals])
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert json.dumps(first.examples) == json.dumps(again.examples)
