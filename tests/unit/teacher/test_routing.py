"""Who answers which record, and who may answer together."""

from __future__ import annotations

from collections import Counter

import pytest
import tiny_teacher as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from overproof.core.config import find_recipe, load_recipe
from overproof.core.errors import UsageError
from overproof.core.recipe import Recipe
from overproof.teacher.example import Example
from overproof.teacher.routing import Router, by_teacher, claimed, demand_alike

BILLING = "{model: a, records: {topic: [billing, refund]}}"


def recipe(*others: str, weight: float = 1.0) -> Recipe:
    settings = [f"teacher.others=[{', '.join(others)}]", f"teacher.weight={weight}"]
    return load_recipe(find_recipe("support"), settings)


def router(*others: str, weight: float = 1.0, seed: int = 0) -> Router:
    return Router(recipe(*others, weight=weight).teacher, seed)


def test_records_go_to_the_teacher_that_claims_them_and_all_others_to_the_first() -> None:
    found = router(BILLING)
    assert found.teacher("k/0", {"topic": "billing"}) == 1
    assert found.teacher("k/0", {"topic": ["parcel", "refund"]}) == 1
    assert found.teacher("k/0", {"topic": "parcel"}) == 0
    assert found.teacher("k/0", {}) == 0


def test_of_two_fields_both_must_be_right() -> None:
    rule = {"topic": ("billing",), "year": ("2026",)}
    assert claimed({"topic": "billing", "year": 2026}, rule)
    assert not claimed({"topic": "billing", "year": 2025}, rule)
    assert not claimed({"topic": "billing", "year": None}, rule)


def test_teachers_share_by_weight() -> None:
    found = router("{model: a, weight: 2}", "{model: b, weight: 0.5}", weight=1.5)
    draws = 4000
    counts = Counter(found.teacher(f"{number}/0", {}) for number in range(draws))
    for which, weight in enumerate((1.5, 2.0, 0.5)):
        share = weight / 4.0
        spread = 4 * (share * (1 - share) / draws) ** 0.5  # four standard errors
        assert counts[which] / draws == pytest.approx(share, abs=spread)


def test_two_that_claim_the_same_share_it_and_leave_nothing_to_the_others() -> None:
    found = router(BILLING, BILLING.replace("a", "b", 1), "{model: c}")
    counts = Counter(found.teacher(f"{number}/0", {"topic": "refund"}) for number in range(200))
    assert set(counts) == {1, 2}


@given(st.text(max_size=8), st.integers(0, 2**31 - 1))
def test_the_same_seed_and_key_give_the_same_teacher(key: str, seed: int) -> None:
    config = recipe("{model: a}", "{model: b}").teacher
    assert Router(config, seed).teacher(key, {}) == Router(config, seed).teacher(key, {})


def test_answers_to_one_prompt_may_come_from_several() -> None:
    found = router("{model: a}")
    assert {found.teacher(f"record/{draw}", {}) for draw in range(20)} == {0, 1}


def test_examples_of_one_teacher_are_taken_together() -> None:
    each = [Example("a", (1,), (2,)), Example("b", (1,), (2,)), Example("c", (1,), (2,), teacher=2)]
    assert [(which, len(run)) for which, run in by_teacher(each)] == [(0, 2), (2, 1)]


def test_teachers_of_other_tokens_or_template_are_refused_by_name() -> None:
    first = tiny.teacher()
    demand_alike(first, tiny.teacher(seed=5, layers=2))
    other = tiny.teacher()
    other.tokenizer.chat_template = tiny.TEMPLATE.replace("user", "human") + " "
    other.tokenizer.add_tokens(["zebra"])
    with pytest.raises(UsageError) as caught:
        demand_alike(first, other)
    assert caught.value.details == ("differs in: tokenizer, chat template",)
    wider = tiny.teacher(vocabulary=tiny.TOKENS + 8)
    with pytest.raises(UsageError) as caught:
        demand_alike(first, wider)
    assert caught.value.details == ("differs in: rows of the embedding",)
    assert torch.equal(first.model.lm_head.weight, tiny.model().lm_head.weight)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("signals={kind: exact}", "signals.kind `exact` makes distributions with one"),
        ("train.on_policy={}", "train.on_policy makes distributions with one teacher's head"),
    ],
)
def test_what_keeps_one_teachers_head_takes_no_second(setting: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(find_recipe("support"), ["teacher.others=[{model: a}]", setting])
    assert message in "\n".join(caught.value.details)


def test_others_go_with_weights_that_are_here() -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(find_recipe("tiny-v4"), ["teacher.others=[{model: a}]"])
    assert "not with one trained from scratch" in "\n".join(caught.value.details)


@pytest.mark.parametrize("wrong", ["{model: a, records: {}}", "{model: a, weight: 0}", "{}"])
def test_a_rule_that_says_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError):
        recipe(wrong)
