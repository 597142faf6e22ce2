"""Write the `support` data set: train.jsonl and heldout.jsonl from requests/ and patterns/.

1. Read the requests and the patterns with their slots, industry by industry.
2. Put each wording on one side: a pattern where its file lists it, a request by a stable hash.
3. Fill the patterns in turn, one distinct text each, until the side has its promised size.
4. Give every combination a voice: a greeting, a closing word, small letters, a typo.
5. Shuffle by the seed, and write one canonical JSON object a line.

Usage: python make.py [--check]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import string
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import yaml

HERE = Path(__file__).resolve().parent
INDUSTRIES = ("retail", "telecoms", "bank", "travel", "software")
SIDES = ("train", "heldout")
SIZES = {"train": 30600, "heldout": 4000}  # records
SEED = 20261124
HELDOUT_ONE_IN = 8  # of the single requests
MAX_TRIES = 40  # draws of a pattern that give nothing new before it counts as used up

LICENCE = "CC0-1.0"
ORIGIN = "overproof/support"
SINGLE, COMBINED = "model", "generator"  # values of `creator`, explained in README.md

OPENERS = (
    *("Hi.", "Hello.", "Hi there.", "Hello there.", "Good morning.", "Good evening.", "Hey."),
    *("Quick question.", "Sorry to bother you.", "I hope you can help.", "Dear support team,"),
    *("I need some help.", "Help please.", "Good afternoon.", "Not sure who to ask."),
)
CLOSERS = (
    *("Thanks.", "Thank you!", "Many thanks.", "Please help.", "Cheers.", "Thanks in advance."),
    *("It is urgent.", "No rush.", "Please advise.", "A short answer is fine."),
)
OPENER_SHARE, CLOSER_SHARE, SMALL_SHARE, TYPO_SHARE = 0.25, 0.15, 0.08, 0.05


@dataclass(frozen=True)
class Record:
    """One line of the data set."""

    prompt: str
    industry: str
    pattern: str
    creator: str
    licence: str = LICENCE
    origin: str = ORIGIN


@dataclass(frozen=True)
class Pattern:
    """A template, `{name}` where a word of slot `name` goes; `{name2}` is a second, other word."""

    id: str
    industry: str
    template: str
    slots: dict[str, list[str]]

    def fill(self, rng: Random) -> str:
        """One text: each slot gets a word, no word twice, first letter large."""
        used: set[str] = set()
        values = {}
        for name in slot_names(self.template):
            source = name if name in self.slots else name.rstrip(string.digits)
            values[name] = rng.choice([word for word in self.slots[source] if word not in used])
            used.add(values[name])
        return capital(self.template.format(**values))


def slot_names(template: str) -> list[str]:
    """Names in braces, in the order of the text."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


def capital(text: str) -> str:
    """The text with a large first letter."""
    return text[:1].upper() + text[1:]


def folded(text: str) -> str:
    """Small letters, no punctuation, single spaces: equal for texts that differ in nothing else."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def read_requests(industry: str) -> dict[str, list[Record]]:
    """Single requests of one industry by side; the side follows from the text's own hash."""
    sides: dict[str, list[Record]] = {side: [] for side in SIDES}
    for line in (HERE / "requests" / f"{industry}.txt").read_text("utf-8").splitlines():
        digest = hashlib.sha256(folded(line).encode()).hexdigest()
        side = "heldout" if int(digest, 16) % HELDOUT_ONE_IN == 0 else "train"
        sides[side].append(Record(line, industry, f"{industry}-single-{digest[:8]}", SINGLE))
    return sides


def read_patterns(industry: str) -> dict[str, list[Pattern]]:
    """Patterns of one industry by side, as its file lists them."""
    data = yaml.safe_load((HERE / "patterns" / f"{industry}.yaml").read_text("utf-8"))
    return {
        side: [Pattern(id_, industry, text, data["slots"]) for id_, text in data[side].items()]
        for side in SIDES
    }


def typo(text: str, rng: Random) -> str:
    """Swap two inner letters of one longer word, as fast fingers do."""
    words = list(re.finditer(r"[a-z]{5,}", text))
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def voiced(text: str, rng: Random) -> str:
    """The text as one of many people would type it."""
    if rng.random() < OPENER_SHARE:
        text = f"{rng.choice(OPENERS)} {text}"
    if rng.random() < CLOSER_SHARE:
        text = f"{text} {rng.choice(CLOSERS)}"
    if rng.random() < TYPO_SHARE:
        text = typo(text, rng)
    return text.lower() if rng.random() < SMALL_SHARE else text


def combine(patterns: list[Pattern], count: int, rng: Random) -> Iterator[Record]:
    """`count` distinct texts, the patterns in turn; one that has no new text drops out.

    Raises:
        SystemExit: the patterns cannot give so many.
    """
    seen: set[str] = set()
    turn = list(patterns)
    while count > 0 and turn:
        for pattern in tuple(turn):
            texts = (pattern.fill(rng) for _ in range(MAX_TRIES))
            text = next((text for text in texts if text not in seen), None)
            if text is None:
                turn.remove(pattern)
            elif count > 0:
                seen.add(text)
                count -= 1
                yield Record(voiced(text, rng), pattern.industry, pattern.id, COMBINED)
    if count:
        raise SystemExit(f"error: {count} records short; add patterns or slot words")


def build(side: str) -> list[Record]:
    """All records of one side, shuffled."""
    rng = Random(f"{SEED}/{side}")  # noqa: S311 - a choice of words, no secret
    singles = [record for industry in INDUSTRIES for record in read_requests(industry)[side]]
    patterns = [pattern for industry in INDUSTRIES for pattern in read_patterns(industry)[side]]
    records = [*singles, *combine(patterns, SIZES[side] - len(singles), rng)]
    rng.shuffle(records)
    return records


def render(records: Iterable[Record]) -> str:
    """JSONL with sorted keys."""
    lines = (json.dumps(asdict(record), sort_keys=True, ensure_ascii=False) for record in records)
    return "".join(f"{line}\n" for line in lines)


def main() -> int:
    """Write the files, or with --check compare them with what would be written."""
    parser = argparse.ArgumentParser(description="Write train.jsonl and heldout.jsonl.")
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    check = parser.parse_args().check
    stale = []
    for side in SIDES:
        path, text = HERE / f"{side}.jsonl", render(build(side))
        if not check:
            path.write_text(text, "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != text:
            stale.append(path.name)
    if stale:
        print(f"error: {', '.join(stale)} differ from the sources; run make.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
