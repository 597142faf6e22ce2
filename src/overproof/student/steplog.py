"""The log of a training run's steps: a chain of hashes that a replay can be held against.

Each line holds what went into a step and what came out of it, and the SHA-256 of itself and the
line before, so that no step can be changed, left out or put in without every later line changing.
The head, the hash of the last line, stands in the stage's manifest, which is signed.

The records of a step stand there as the digest of their keys: who has the data set can hold it
against them, and who has only the log learns of no record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from overproof.core.artifact import Json
from overproof.core.digest import sha256_json
from overproof.core.errors import TrustError
from overproof.data.read import parse_object
from overproof.data.records import RecordError

FILE = "steps.jsonl"
FORMAT = "overproof-steps-1"
START = "0" * 64  # what the first line follows


def lines(
    header: Json,
    records: Iterator[Sequence[str]],
    losses: Sequence[float],
    rates: Sequence[float],
    weights: Mapping[int, str],
    said: Mapping[int, str],
) -> Iterator[Json]:
    """The lines of a log, without their hashes.

    Args:
        header: settings that the steps follow from.
        records: keys of the records of each step.
        weights: digests of the weights before some steps, and after the last.
        said: digests of what the student said for the on-policy steps.
    """
    yield {"format": FORMAT, **header}
    for step, (loss, rate) in enumerate(zip(losses, rates, strict=True)):
        keys = sha256_json(list(next(records)))
        line: Json = {"step": step, "records": keys, "loss": loss, "rate": rate}
        some = {"weights": weights, "said": said}
        yield line | {name: found[step] for name, found in some.items() if step in found}
    yield {"step": len(losses), "weights": weights[len(losses)]}


def write(path: Path, found: Iterator[Json]) -> str:
    """Write the lines with their hashes; returns the head."""
    chain = START
    with path.open("w", encoding="utf-8") as stream:
        for line in found:
            chain = _link(chain, line)
            stream.write(json.dumps({**line, "chain": chain}) + "\n")
    return chain


def read(path: Path, head: str | None = None) -> list[Json]:
    """Read a log and check its chain.

    Args:
        head: what the last hash must be; None: any.

    Raises:
        TrustError: there is no log, a line is not what was written, or lines are missing; the
            message says which.
    """
    if not path.is_file():
        raise TrustError(f"no log at {path}", hint="it stands in the folder of the stage `student`")
    chain, found = START, list[Json]()
    with path.open("rb") as stream:
        for number, data in enumerate(stream, start=1):
            line = _line(data)
            if (
                line is None
                or line.pop("chain", None) != (chain := _link(chain, line))
                or (number == 1 and line.get("format") != FORMAT)
            ):
                raise TrustError(
                    f"{path} is not the log that was written",
                    details=[f"line {number} does not follow from the lines before it"],
                    hint="fetch the file again",
                )
            found.append(line)
    if not found or (head is not None and chain != head):
        raise TrustError(
            f"{path} ends elsewhere than its manifest says",
            details=[f"got {chain}, wanted {head}"],
            hint="fetch the file again",
        )
    return found


def _link(before: str, line: Json) -> str:
    return sha256_json({"before": before, "line": line})


def _line(data: bytes) -> Json | None:
    try:
        return parse_object(data)
    except RecordError:
        return None
