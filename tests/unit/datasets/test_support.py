"""The `support` data set keeps the promises of its data card."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).resolve().parents[3] / "datasets" / "support"
INDUSTRIES = ("retail", "telecoms", "bank", "travel", "software")
SIDES = ("train", "heldout")
FIELDS = ["creator", "industry", "licence", "origin", "pattern", "prompt"]

MIN_SINGLES, MIN_SINGLES_PER_INDUSTRY = 4000, 800
MIN_PATTERNS = 400
MIN_COMBINATIONS = 4000
NGRAM_WORDS = 8
MAX_OVERLAP = 0.01  # share of held-out prompts that have an 8-gram in common with a train prompt
WORDS = range(3, 90)  # words in one prompt, greeting and closing included
SINGLE_WORDS = range(5, 61)

EMAIL = re.compile(r"\S+@\S+\.\S+")
LONG_NUMBER = re.compile(r"\d[\d ()-]{5,}\d")  # phone, card and account numbers; IBANs too
ERROR_CODE = "0x80070005"  # the only one allowed: a Windows error code


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("support_make", FOLDER / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def records() -> dict[str, list[dict[str, Any]]]:
    return {
        side: [
            json.loads(line) for line in (FOLDER / f"{side}.jsonl").read_text("utf-8").splitlines()
        ]
        for side in SIDES
    }


@pytest.fixture(scope="module")
def requests() -> dict[str, list[str]]:
    return {
        industry: (FOLDER / "requests" / f"{industry}.txt").read_text("utf-8").splitlines()
        for industry in INDUSTRIES
    }


@pytest.fixture(scope="module")
def patterns() -> dict[str, Any]:
    return {
        industry: yaml.safe_load((FOLDER / "patterns" / f"{industry}.yaml").read_text("utf-8"))
        for industry in INDUSTRIES
    }


def words(text: str) -> list[str]:
    return re.sub(r"[^\w\s]", "", text.lower()).split()


def ngrams(text: str) -> set[tuple[str, ...]]:
    row = words(text)
    return {tuple(row[i : i + NGRAM_WORDS]) for i in range(len(row) - NGRAM_WORDS + 1)}


def near_pairs(sets: list[set[str]]) -> Iterator[tuple[int, int]]:
    """Pairs with a Jaccard similarity above one half, by prefix filtering.

    From the smallest set to the largest. Above one half, a set of `n` shares more than `n / 2` of
    its words with a smaller one and more than `2 n / 3` with a larger one: so one of its
    `n - n // 2` rarest words is among the `m - 2 m // 3` rarest of the smaller one of `m`.
    Xiao et al., Efficient Similarity Joins for Near Duplicate Detection, 2008.
    """
    count = Counter(word for group in sets for word in group)
    holders: dict[str, list[int]] = {}
    for index in sorted(range(len(sets)), key=lambda at: (len(sets[at]), at)):
        group, size = sets[index], len(sets[index])
        rarest = sorted(group, key=lambda word: (count[word], word))
        for other in sorted(
            {at for word in rarest[: size - size // 2] for at in holders.get(word, ())}
        ):
            if 3 * len(group & sets[other]) > size + len(sets[other]):
                yield min(other, index), max(other, index)
        for word in rarest[: size - 2 * size // 3]:
            holders.setdefault(word, []).append(index)


def front_matter() -> dict[str, Any]:
    card = (FOLDER / "README.md").read_text("utf-8")
    loaded: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return loaded


def test_counts(
    records: dict[str, Any], requests: dict[str, Any], patterns: dict[str, Any]
) -> None:
    assert all(len(lines) >= MIN_SINGLES_PER_INDUSTRY for lines in requests.values())
    assert sum(map(len, requests.values())) >= MIN_SINGLES
    assert sum(len(p[side]) for p in patterns.values() for side in SIDES) >= MIN_PATTERNS
    combined = {
        record["prompt"]
        for side in SIDES
        for record in records[side]
        if record["creator"] == "generator"
    }
    assert len(combined) >= MIN_COMBINATIONS


def test_every_single_request_is_used_once(records: dict[str, Any], requests: Any) -> None:
    got = [r["prompt"] for side in SIDES for r in records[side] if r["creator"] == "model"]
    assert sorted(got) == sorted(line for lines in requests.values() for line in lines)


def test_single_requests_are_distinct(requests: dict[str, list[str]]) -> None:
    lines = [line for group in requests.values() for line in group]
    assert len({" ".join(words(line)) for line in lines}) == len(lines)
    for a, b in near_pairs([set(words(line)) for line in lines]):
        raise AssertionError((lines[a], lines[b]))


@given(st.lists(st.sets(st.sampled_from("abcdefgh")), max_size=12))
def test_near_pairs_are_those_of_the_definition(sets: list[set[str]]) -> None:
    pairs = itertools.combinations(range(len(sets)), 2)
    wanted = [(a, b) for a, b in pairs if 2 * len(sets[a] & sets[b]) > len(sets[a] | sets[b])]
    assert sorted(near_pairs(sets)) == wanted


def test_lengths(records: dict[str, Any], requests: dict[str, list[str]]) -> None:
    for line in (line for group in requests.values() for line in group):
        assert len(line.split()) in SINGLE_WORDS, line
    for record in (record for side in SIDES for record in records[side]):
        assert len(record["prompt"].split()) in WORDS, record


def test_fields(records: dict[str, Any]) -> None:
    for record in (record for side in SIDES for record in records[side]):
        assert list(record) == FIELDS
        assert record["licence"] == "CC0-1.0" and record["origin"] == "overproof/support"
        assert record["creator"] in {"model", "generator"}
        assert record["industry"] in INDUSTRIES
        assert record["pattern"].startswith(record["industry"] + "-")
        assert record["creator"] == "model" or "{" not in record["prompt"]
        assert record["prompt"] == record["prompt"].strip()


def test_no_wording_on_both_sides(records: dict[str, Any], patterns: dict[str, Any]) -> None:
    ids = [{record["pattern"] for record in records[side]} for side in SIDES]
    texts = [{" ".join(words(record["prompt"])) for record in records[side]} for side in SIDES]
    assert not ids[0] & ids[1] and not texts[0] & texts[1]
    templates = [{t for p in patterns.values() for t in p[side].values()} for side in SIDES]
    assert not templates[0] & templates[1]


def test_no_duplicate_prompts(records: dict[str, Any]) -> None:
    for side in SIDES:
        prompts = [record["prompt"] for record in records[side]]
        assert len(set(prompts)) == len(prompts)


def test_little_ngram_overlap(records: dict[str, Any]) -> None:
    known = set().union(*(ngrams(record["prompt"]) for record in records["train"]))
    shared = [r["prompt"] for r in records["heldout"] if ngrams(r["prompt"]) & known]
    assert len(shared) <= MAX_OVERLAP * len(records["heldout"]), shared


def test_patterns_are_drawn_evenly(records: dict[str, Any]) -> None:
    drawn = [r["pattern"] for r in records["train"] if r["creator"] == "generator"]
    most = max(Counter(drawn).values())
    assert most <= 2 * len(drawn) / len(set(drawn))
    assert len(set(drawn)) >= MIN_PATTERNS


def test_no_personal_data(records: dict[str, Any]) -> None:
    for prompt in (record["prompt"] for side in SIDES for record in records[side]):
        assert not EMAIL.search(prompt), prompt
        assert not LONG_NUMBER.search(prompt.replace(ERROR_CODE, "")), prompt


def test_articles_agree_with_every_slot_word(patterns: dict[str, Any]) -> None:
    for group in patterns.values():
        for template in (text for side in SIDES for text in group[side].values()):
            for article, slot in re.findall(r"\b([Aa]n?) \{([a-z]+?)2?\}", template):
                for word in group["slots"][slot]:
                    assert (article.lower() == "an") == (word[0].lower() in "aeiou"), (
                        template,
                        word,
                    )


def test_slots_are_used_distinct_and_short(patterns: dict[str, Any]) -> None:
    for group in patterns.values():
        text = " ".join(template for side in SIDES for template in group[side].values())
        for name, values in group["slots"].items():
            assert "{" + name in text, name
            assert len(set(values)) == len(values), name
            assert all(isinstance(value, str) and len(value.split()) <= 7 for value in values), name


def test_files_equal_what_the_script_writes(make: ModuleType) -> None:
    for side in SIDES:
        text = make.render(make.build(side))
        assert (FOLDER / f"{side}.jsonl").read_text("utf-8") == text


def test_check_flag() -> None:
    done = subprocess.run([sys.executable, FOLDER / "make.py", "--check"], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_side_of_a_request_ignores_case_and_punctuation(make: ModuleType) -> None:
    assert make.folded("Where is it?!  Tell me.") == make.folded("where is it tell me")


def test_pattern_uses_no_word_twice(make: ModuleType) -> None:
    pattern = make.Pattern("x-1", "x", "{a} or {a2}", {"a": ["one", "two"]})
    texts = {pattern.fill(make.Random(seed)) for seed in range(20)}
    assert texts == {"One or two", "Two or one"}


def test_too_few_combinations_is_an_error(make: ModuleType) -> None:
    pattern = make.Pattern("x-1", "x", "{a}", {"a": ["one", "two"]})
    with pytest.raises(SystemExit, match="1 records short"):
        list(make.combine([pattern], 3, make.Random(0)))


def test_data_card_counts(records: dict[str, Any], requests: Any, patterns: Any) -> None:
    card = (FOLDER / "README.md").read_text("utf-8")
    singles = {s: sum(r["creator"] == "model" for r in records[s]) for s in SIDES}
    for side in SIDES:
        total = len(records[side])
        count = sum(len(p[side]) for p in patterns.values())
        row = f"| {side} | {total} | {singles[side]} | {total - singles[side]} | {count} |"
        assert row in card
    for industry in INDUSTRIES:
        train, heldout = (
            sum(record["industry"] == industry for record in records[side]) for side in SIDES
        )
        row = f"| {industry} | {train} | {heldout} | {len(requests[industry])} |"
        assert row in card
    sizes = {s["name"]: s["num_examples"] for s in front_matter()["dataset_info"]["splits"]}
    assert sizes == {side: len(records[side]) for side in SIDES}


def test_data_card_metadata() -> None:
    meta = front_matter()
    assert meta["license"] == "cc0-1.0" and meta["language"] == ["en"]
    files = [file["path"] for config in meta["configs"] for file in config["data_files"]]
    assert all((FOLDER / file).is_file() for file in files)
