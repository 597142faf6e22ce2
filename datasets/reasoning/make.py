"""Write the `reasoning` data set: train.jsonl and heldout.jsonl, word problems with their answers.

1. Go through every pair of numbers of every family; a stable hash puts the pair on one side, so
   that no held-out problem asks for numbers that a training problem of its family has.
2. Tell each problem in several ways: another frame, another person, another thing.
3. Shuffle by the seed, cut to the promised sizes, and write one canonical JSON object a line.

Usage: python make.py [--check]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
SIZES = {"train": 6000, "heldout": 1000}  # records
SEED = 20261128
HELDOUT_ONE_IN = 5  # of the pairs of numbers
TOLD = 6  # ways in which a pair is told

LICENCE = "CC0-1.0"
ORIGIN = f"overproof/reasoning#seed={SEED}"

PEOPLE = (
    *("Ada", "Amir", "Bea", "Chen", "Dora", "Emil", "Fatou", "Goran", "Hana", "Igor", "Jada"),
    *("Kofi", "Lena", "Mika", "Nora", "Omar", "Pia", "Ravi", "Sara", "Tom", "Uma", "Vera"),
)
THINGS = (
    *("apples", "books", "coins", "stamps", "pens", "shells", "cards", "stones", "eggs", "keys"),
    *("cups", "plates", "tickets", "buttons", "candles", "marbles"),
)
HOLDERS = ("boxes", "bags", "baskets", "jars", "rows", "packs")


@dataclass(frozen=True)
class Family:
    """Problems that ask for one operation on two numbers.

    Attributes:
        frames: ways of asking; `{a}` and `{b}` are the numbers, in this order.
        pairs: all (a, b) that are asked for. solve: what is right.
        either: a and b may change places; both orders are then on one side.
    """

    name: str
    frames: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    solve: Callable[[int, int], int]
    either: bool = True


FAMILIES = (
    Family(
        "sum",
        (
            "What is {a} + {b}?",
            "{who} has {a} {things} and gets {b} more. How many {things} does {who} have now?",
            "{who} finds {a} {things} in the morning and {b} in the evening. How many {things} "
            "is that in all?",
            "There are {a} {things} on the table and {b} on the floor. How many {things} is that?",
        ),
        tuple((a, b) for a in range(2, 50) for b in range(2, 50)),
        lambda a, b: a + b,
    ),
    Family(
        "difference",
        (
            "What is {a} - {b}?",
            "{who} has {a} {things} and gives away {b}. How many {things} are left?",
            "{who} had {a} {things} and lost {b}. How many {things} does {who} have now?",
            "There were {a} {things}, and {b} were sold. How many {things} are left?",
        ),
        tuple((a, b) for a in range(4, 60) for b in range(2, a - 1)),
        lambda a, b: a - b,
        either=False,
    ),
    Family(
        "product",
        (
            "What is {a} * {b}?",
            "There are {a} {holders} with {b} {things} in each. How many {things} are there?",
            "{who} buys {a} {holders} of {things}. Each holds {b}. How many {things} is that?",
            "One of the {holders} holds {b} {things}. How many {things} do {a} of them hold?",
        ),
        tuple((a, b) for a in range(2, 13) for b in range(2, 13)),
        lambda a, b: a * b,
    ),
)


def side(family: Family, a: int, b: int) -> str:
    """Where a pair belongs, whatever else the set holds."""
    low, high = (min(a, b), max(a, b)) if family.either else (a, b)
    digest = hashlib.sha256(f"{family.name} {low} {high}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:4], "big") % HELDOUT_ONE_IN == 0 else "train"


def problems(family: Family, name: str) -> Iterator[dict[str, object]]:
    """All problems of a family on one side, told in several ways, in an order of their own."""
    rng = Random(f"{SEED} {family.name} {name}")  # noqa: S311 - reproducible, not secret
    pairs = [pair for pair in family.pairs if side(family, *pair) == name]
    told = set[str]()
    for _ in range(TOLD):
        rng.shuffle(pairs)
        for a, b in pairs:
            words = {"who": rng.choice(PEOPLE), "things": rng.choice(THINGS)}
            words["holders"] = rng.choice(HOLDERS)
            prompt = rng.choice(family.frames).format(a=a, b=b, **words)
            if prompt in told:
                continue
            told.add(prompt)
            yield {
                "check": {"answer": family.solve(a, b), "kind": "number"},
                "creator": "generator",
                "family": family.name,
                "licence": LICENCE,
                "origin": ORIGIN,
                "prompt": prompt,
            }


def records(name: str) -> list[dict[str, object]]:
    """The records of a side: of each family as many as of any other, while there are some."""
    queues = [problems(family, name) for family in FAMILIES]
    found: list[dict[str, object]] = []
    while queues and len(found) < SIZES[name]:
        for queue in list(queues):
            record = next(queue, None)
            if record is None:
                queues.remove(queue)
            else:
                found.append(record)
    found = found[: SIZES[name]]
    Random(f"{SEED} {name}").shuffle(found)  # noqa: S311 - see above
    return found


def text(name: str) -> str:
    """The file of a side."""
    return "".join(json.dumps(one, sort_keys=True) + "\n" for one in records(name))


def main() -> int:
    """Write both files, or with `--check` say whether they are what this script writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if they differ")
    check = parser.parse_args().check
    for name in SIZES:
        path, wanted = HERE / f"{name}.jsonl", text(name)
        if not check:
            path.write_text(wanted, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != wanted:
            print(f"{path.name} is not what make.py writes", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
