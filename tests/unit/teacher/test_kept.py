"""Three kinds of signals behind one type."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_teacher as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overproof.core.errors import StageError
from overproof.teacher.kept import Kept, Sampled, Signals, States, TopK, exact, kept_of
from overproof.teacher.kept.draw import draw
from overproof.teacher.kept.sampled import SampledSignals
from overproof.teacher.kept.top_k import TopSignals
from overproof.teacher.signals import shard_signals, target_mask

HEAD = (1, 7, 8)
ROOM = 40
KINDS = {
    "top-k": TopK(6, 4),
    "top-k without draws": TopK(6),
    "every token": TopK(10_000, 3),
    "sampled": Sampled(30),
    "sampled often": Sampled(255),
    "exact": States(),
}
every = pytest.mark.parametrize("kept", KINDS.values(), ids=KINDS)


def signals(kept: Kept, count: int = 12) -> Signals:
    return shard_signals(tiny.model(), HEAD, tiny.examples(count), ROOM, kept)


def own(kept: Kept, count: int = 12) -> torch.Tensor:
    """The teacher's distribution at every target, each example alone."""
    rows = []
    for example in tiny.examples(count):
        logits = tiny.alone(tiny.model(), [*HEAD, *example.tokens])
        rows += [logits[len(HEAD) + at] for at in example.targets(prompt=kept.prompts)]
    return torch.stack(rows).softmax(-1)


def dense(kept: Kept, found: Signals) -> torch.Tensor:
    """A spread laid out over the vocabulary, the tail by its draws."""
    spread = found.spread(tiny.model().lm_head.weight.detach())
    probs = torch.zeros(len(found), tiny.TOKENS).scatter_add_(1, spread.ids_NK, spread.probs_NK)
    draws = spread.drawn_NR.shape[1]
    if draws:
        share = (spread.tail_N[:, None] / draws).expand(-1, draws)
        probs.scatter_add_(1, spread.drawn_NR, share)
    return probs


@every
@pytest.mark.parametrize("prompts", [False, True])
def test_there_is_a_row_for_every_target(kept: Kept, prompts: bool) -> None:
    found = signals(replace(kept, prompts=prompts))
    assert len(found) == target_mask(tiny.examples(12), prompts=prompts).sum()


@every
def test_packed_bytes_give_the_same_again(kept: Kept) -> None:
    kept = kept.within(tiny.TOKENS)
    found = signals(kept)
    arrays = {name: one.clone() for name, one in kept.pack(found).items()}
    for again in (kept.unpack(arrays), kept.from_bytes(kept.to_bytes(found), len(found))):
        assert type(again) is type(found)
        assert all(map(torch.equal, again.arrays, found.arrays))


@every
def test_bytes_that_are_no_signals_are_told(kept: Kept) -> None:
    kept = kept.within(tiny.TOKENS)
    found = signals(kept)
    data = kept.to_bytes(found)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(ValueError, match="are no signals"):
            kept.from_bytes(wrong, len(found))


@every
def test_what_is_kept_follows_from_the_examples_and_can_be_cut_and_joined(kept: Kept) -> None:
    found = signals(kept)
    again = signals(kept)
    assert all(map(torch.equal, found.arrays, again.arrays))
    parts = [found.rows(slice(0, 5)), found.rows(slice(5, None))]
    joined = type(found).joined(parts)
    assert all(map(torch.equal, joined.arrays, found.arrays))


def test_hidden_states_give_the_whole_distribution_again() -> None:
    found = signals(States())
    spread = found.spread(tiny.model().lm_head.weight.detach())
    probs = torch.zeros(len(found), tiny.TOKENS).scatter_(1, spread.ids_NK, spread.probs_NK)
    wanted = own(States())
    largest = wanted.topk(100, -1)
    torch.testing.assert_close(  # bf16 states
        probs.gather(1, largest.indices), largest.values, rtol=0.05, atol=1e-4
    )


def test_hidden_states_without_a_head_say_nothing() -> None:
    with pytest.raises(StageError, match="need the teacher's head"):
        signals(States()).spread(None)


@pytest.mark.parametrize(
    ("kept", "draws"), [(Sampled(30), 30), (Sampled(200), 200), (TopK(6, 4), 4)]
)
def test_kept_distributions_are_the_teachers_in_the_mean(kept: Kept, draws: int) -> None:
    """Over 4,000 offsets, within six standard errors.

    A draw stands for a share s; a token of probability p has p / s draws, rounded down or up, so
    with f the fraction the error of its mean is s sqrt(f (1 - f) / 4,000). Five whole draws more
    are allowed to those so rare that no normal law holds.
    """
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 300, generator=generator) * 2
    probs = logits.softmax(-1)[0]
    offsets = torch.rand(4000, generator=generator, dtype=torch.float64)
    total, tail = torch.zeros(300), 1.0
    for part in exact(logits.expand(4000, -1), logits.expand(4000, -1)):
        spread = kept.take(part, offsets[part.where]).spread(None)
        laid = torch.zeros(len(spread.ids_NK), 300)
        laid.scatter_add_(1, spread.ids_NK, spread.probs_NK)
        if spread.drawn_NR.shape[1]:
            tail = float(spread.tail_N[0])
            laid.scatter_add_(1, spread.drawn_NR, spread.drawn_NR * 0.0 + tail / draws)
        total += laid.sum(0)
    share = tail / draws
    fraction = (probs / share).frac()
    error = share * (fraction * (1 - fraction) / 4000).sqrt()
    off = (total / 4000 - probs).abs()
    assert (off <= 6 * error + 5 * share / 4000 + 5e-4 * probs).all()  # fp16 of the likely ones
    assert (total[probs < 1e-3] > 0).any()  # the tail is there


def test_a_temperature_is_that_of_the_kept_distribution() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    (part,) = exact(logits, logits)
    wanted = (logits / 3).softmax(-1)
    top = TopK(50, temperature=3.0).take(part, torch.zeros(4)).spread(None)
    torch.testing.assert_close(top.probs_NK, wanted.gather(1, top.ids_NK), rtol=2e-3, atol=0)
    many = Sampled(255, temperature=3.0).take(part, torch.rand(4)).spread(None)
    got = torch.zeros(4, 50).scatter_add_(1, many.ids_NK, many.probs_NK)
    assert (got - wanted).abs().max() < 1 / 255


def test_kept_mass_and_tail_make_one_and_the_tail_is_the_teachers() -> None:
    kept = TopK(6, 4)
    found = signals(kept)
    assert isinstance(found, TopSignals)
    spread = found.spread()
    total = spread.probs_NK.sum(-1) + found.tail_N.exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
    assert not (found.drawn_NR[:, :, None] == found.ids_NK[:, None, :]).any()
    others = own(kept).sort(-1).values[:, :-6].sum(-1)
    torch.testing.assert_close(found.tail_N.exp(), others, rtol=0.02, atol=0)  # bf16 may move it
    torch.testing.assert_close(spread.tail_N, found.tail_N.exp(), rtol=0, atol=1e-6)


def test_a_small_tail_behind_likely_tokens_is_not_lost_to_rounding() -> None:
    """fp16 has three digits; the log-probabilities of likely tokens often make more than 1."""
    logits = torch.randn(200, 60, generator=torch.Generator().manual_seed(1)) * 4
    tails, wanted = list[torch.Tensor](), list[torch.Tensor]()
    for part in exact(logits, logits):
        found = TopK(20).take(part, torch.zeros(len(part.logits_PV)))
        tails.append(found.spread().tail_N)
        wanted.append(part.logits_PV.softmax(-1).sort(-1).values[:, :-20].sum(-1))
    small = torch.cat(wanted) < 1e-3
    assert small.sum() > 20
    got = torch.cat(tails)
    torch.testing.assert_close(got[small], torch.cat(wanted)[small], rtol=0.01, atol=3e-7)


def test_more_kept_than_there_are_tokens_is_all_of_them() -> None:
    found = signals(TopK(10_000, 3))
    assert found.arrays[0].shape[1] == tiny.TOKENS
    assert found.arrays[3].shape[1] == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_draws_survive_the_disk(data: st.DataObject) -> None:
    """Any vocabulary up to a million, any number of draws, all on one token or none twice."""
    size = data.draw(st.sampled_from([2, 300, 49_152, 151_936, 262_208, 1_000_000]))
    draws = data.draw(st.integers(1, 255))
    rows = data.draw(st.integers(1, 4))
    token = st.integers(0, size - 1) | st.sampled_from([0, size - 1])
    row = st.lists(token, min_size=draws, max_size=draws) | token.map(lambda one: [one] * draws)
    drawn = torch.tensor([sorted(data.draw(row)) for _ in range(rows)], dtype=torch.int32)
    kept = Sampled(draws).within(size)
    found = SampledSignals(drawn)
    assert torch.equal(kept.from_bytes(kept.to_bytes(found), rows).drawn_NR, drawn)
    spread = found.spread()
    torch.testing.assert_close(spread.probs_NK.sum(-1), torch.ones(rows), rtol=0, atol=1e-5)
    for index in range(rows):
        ids, counts = drawn[index].long().unique(return_counts=True)
        there = spread.probs_NK[index] > 0
        got = dict(
            zip(spread.ids_NK[index][there].tolist(), spread.probs_NK[index][there].tolist(),
                strict=True)
        )  # fmt: skip
        assert got == pytest.approx(dict(zip(ids.tolist(), (counts / draws).tolist(), strict=True)))


@pytest.mark.parametrize("tokens", [5, 64, 65, 1000])
@pytest.mark.parametrize("count", [1, 7, 32])
def test_draws_are_unbiased_and_differ_by_less_than_one(tokens: int, count: int) -> None:
    """Averaged over all offsets a token's number is its share; at each offset it is next to it."""
    mass = torch.rand(tokens, generator=torch.Generator().manual_seed(tokens)) ** 4
    mass[:: max(2, tokens // 7)] = 0.0
    offsets = (torch.arange(4000) + 0.5) / 4000
    drawn = draw(mass.expand(len(offsets), -1), offsets, count)
    assert (mass[drawn] > 0).all()
    numbers = torch.zeros(len(offsets), tokens).scatter_add_(1, drawn, torch.ones(drawn.shape))
    wanted = count * mass / mass.sum()
    assert (numbers - wanted).abs().max() < 1 + 1e-3
    torch.testing.assert_close(numbers.mean(0), wanted, rtol=0, atol=1.5e-3)


def test_nothing_to_draw_from() -> None:
    assert draw(torch.rand(3, 70), torch.rand(3), 0).shape == (3, 0)
    drawn = draw(torch.zeros(3, 70), torch.rand(3), 5)
    assert ((drawn >= 0) & (drawn < 70)).all()


def test_the_last_point_stays_before_the_end() -> None:
    """In fp32 an offset near one rounds the last of many points up to the whole."""
    mass = torch.zeros(1, 128)
    mass[0, 3:60] = 0.1
    drawn = draw(mass, torch.tensor([1 - 1e-9], dtype=torch.float64), 32)
    assert (mass[0, drawn[0]] > 0).all()
    assert drawn.max() == 59


def test_the_recipe_says_what_is_kept() -> None:
    from overproof.core import methods

    assert kept_of(methods.Sampled(kind="sampled")) == Sampled(50, prompts=True)
    found = kept_of(methods.TopK(kind="top-k", top_k=3, tail_draws=2, prompts=False))
    assert found == TopK(3, 2)
    assert kept_of(methods.Exact(kind="exact", temperature=2)) == States(
        prompts=True, temperature=2.0
    )
