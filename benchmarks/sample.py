"""Sampling throughput: our slots against `generate` of transformers, same prompts and batch.

    python benchmarks/sample.py [--prompts 192] [--batch 96] [--rounds 3]

Both draw with temperature 0.7 from the 64 most likely tokens, in bf16, on all cores, in turn:
A B A B. `generate` gets what its documentation advises: left padding, prompts sorted by length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from overproof.core import device

device.prepare()

import torch  # noqa: E402

from _results import keep  # noqa: E402
from overproof.core.console import meter  # noqa: E402
from overproof.teacher import local  # noqa: E402
from overproof.teacher.journal import Journal  # noqa: E402
from overproof.teacher.kept import Kept, TopK  # noqa: E402
from overproof.teacher.prompts import shared_prefix  # noqa: E402
from overproof.teacher.request import Drawing, Request  # noqa: E402
from overproof.teacher.sample import draw_all  # noqa: E402

SYSTEM = "You are a customer support assistant. Answer in two or three short sentences."
LENGTH = 80
SIGNALS = TopK(96, 32)  # as in the recipe `support`


def ours(
    teacher: local.Teacher,
    prompts: list[list[int]],
    batch: int,
    seed: int,
    signals: Kept | None = None,
) -> float:
    """Tokens a second, worker start-up included; `signals`: what is kept of a position."""
    prefix = shared_prefix(prompts)
    requests = [
        Request.make(str(index), ids[len(prefix) :], seed, signals=signals is not None)
        for index, ids in enumerate(prompts)
    ]
    drawing = Drawing(0.7, 1.0, 64, LENGTH, batch, teacher.stop_ids, signals)
    model = teacher.half
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        started = time.perf_counter()
        with meter("ours", len(prompts) * LENGTH, "tokens") as progress:
            draw_all(model, prefix, requests, drawing, journal, progress)
        seconds = time.perf_counter() - started
        journal.close()
    return sum(len(entry.tokens) for entry in journal.done.values()) / seconds


def generate(teacher: local.Teacher, prompts: list[list[int]], batch: int, seed: int) -> float:
    """The same with `generate`, batch after batch; padding after the end is not counted."""
    model, tokenizer = teacher.half, teacher.tokenizer
    torch.manual_seed(seed)
    ordered = sorted(prompts, key=len)
    pad, stop = tokenizer.pad_token_id, teacher.stop_ids[0]
    tokens, started = 0, time.perf_counter()
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        width = max(map(len, part))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in part])
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=seen, do_sample=True, temperature=0.7, top_k=64,
                max_new_tokens=LENGTH, pad_token_id=pad,
            )  # fmt: skip
        for row in out[:, width:].tolist():
            tokens += row.index(stop) + 1 if stop in row else len(row)
    return tokens / (time.perf_counter() - started)


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    teacher = local.load("builtin:smollm2-135m-instruct")
    source = Path(__file__).parents[1] / "datasets/support/train.jsonl"
    lines = source.read_text(encoding="utf-8").splitlines()[: given.prompts]
    prompts = [teacher.prompt_ids(json.loads(line)["prompt"], SYSTEM) for line in lines]
    rows = []
    for seed in range(given.rounds):
        row = {
            "ours": ours(teacher, prompts, given.batch, seed),
            "ours_with_signals": ours(teacher, prompts, given.batch, seed, SIGNALS),
            "generate": generate(teacher, prompts, given.batch, seed),
        }
        rows.append(row | {"ratio": row["ours"] / row["generate"]})
        print({name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    numbers = {
        "unit": "tokens per second",
        "median": {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]},
        "rounds": rows,
        "settings": vars(given),
    }
    result = keep("sample", numbers)
    print(json.dumps(result["median"]))


if __name__ == "__main__":
    main()
