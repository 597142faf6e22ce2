"""The `reasoning` data set keeps the promises of its data card."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from overproof.core.config import find_recipe, load_recipe
from overproof.teacher.checkers import parse

FOLDER = Path(__file__).resolve().parents[3] / "datasets" / "reasoning"
OPERATIONS = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - b,
    "product": lambda a, b: a * b,
}


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def numbers(row: dict) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", row["prompt"])))


def test_the_files_are_what_the_script_writes() -> None:
    done = subprocess.run([sys.executable, FOLDER / "make.py", "--check"], check=False)
    assert done.returncode == 0


def test_every_answer_is_right_and_passes_its_check() -> None:
    for name in ("train", "heldout"):
        for row in rows(name):
            # A frame may name how many there are in each before it says how many of them.
            answer = OPERATIONS[row["family"]](*numbers(row))
            assert row["check"] == {"kind": "number", "answer": answer}
            assert answer > 0
    row = rows("train")[0]
    right = row["check"]["answer"]
    assert parse(row["check"]).check(f"It is {right}.").passed
    assert not parse(row["check"]).check(f"It is {right + 1}.").passed


def test_held_out_numbers_are_never_trained_on() -> None:
    def pair(row: dict) -> tuple:
        ordered = row["family"] == "difference"
        return (row["family"], *(numbers(row) if ordered else sorted(numbers(row))))

    def pairs(name: str) -> set[tuple]:
        return {pair(row) for row in rows(name)}

    train, heldout = pairs("train"), pairs("heldout")
    assert not train & heldout
    assert min(len(train), len(heldout)) > 200


def test_the_data_card_counts_right() -> None:
    card = (FOLDER / "README.md").read_text()
    for name in ("train", "heldout"):
        found = Counter(row["family"] for row in rows(name))
        prompts = {row["prompt"] for row in rows(name)}
        assert len(prompts) == sum(found.values())
        families = " | ".join(str(found[family]) for family in OPERATIONS)
        assert f"| {name} | {sum(found.values())} | {families} |" in card


def test_the_recipe_learns_only_what_is_right() -> None:
    recipe = load_recipe(find_recipe("reasoning"))
    assert recipe.solving
    assert recipe.data.heldout == "datasets/reasoning/heldout.jsonl"
    asked = {row["prompt"] for name in ("train", "heldout") for row in rows(name)}
    for shot in recipe.teacher.shots:
        assert shot.prompt not in asked
        assert shot.answer.startswith("<think>")
