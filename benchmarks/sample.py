"""Sampling throughput: our slots against transformers' `generate` and llama.cpp's server.

    python benchmarks/sample.py [--prompts 192] [--batch 64] [--streams 16] [--rounds 3]

All draw with temperature 0.7 from the 64 most likely tokens, on all cores, in turn: A B A B.
`generate` gets what its documentation advises: left padding, prompts sorted by length, bf16.
llama.cpp serves the teacher's own GGUF file over HTTP, to as many clients as it has slots; every
slot keeps the prefix that all prompts share. Its threads wait as they do by default.
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

from _child import run  # noqa: E402
from _results import keep  # noqa: E402
from overproof.core.console import meter  # noqa: E402
from overproof.teacher import files, local  # noqa: E402
from overproof.teacher.journal import Journal  # noqa: E402
from overproof.teacher.kept import Kept, TopK  # noqa: E402
from overproof.teacher.prompts import shared_prefix  # noqa: E402
from overproof.teacher.request import Drawing, Request  # noqa: E402
from overproof.teacher.sample import draw_all  # noqa: E402

TEACHER = "builtin:smollm2-135m-instruct"
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


def llama(file: Path, prompts: list[list[int]], streams: int, seed: int) -> float:
    """The same by llama.cpp's server from a GGUF file; loading it is not counted."""
    found = run(
        "_llama.py",
        {
            "file": str(file),
            "prompts": prompts,
            "streams": streams,
            "threads": device.cores(),
            "context": max(map(len, prompts)) + LENGTH,
            "request": {
                "n_predict": LENGTH,
                "temperature": 0.7,
                "top_k": 64,
                "samplers": ["top_k", "temperature"],
                "seed": seed,
                "cache_prompt": True,
            },
        },
    )
    return float(found["tokens"] / found["seconds"])


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=192)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    teacher, (file, _) = local.load(TEACHER), files.identify(TEACHER)
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
        row["llama_cpp"] = llama(file, prompts, given.streams, seed)
        ratios = {f"times_{name}": row["ours"] / row[name] for name in ("generate", "llama_cpp")}
        rows.append(row | ratios)
        print({name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    numbers = {
        "unit": "tokens per second",
        "median": {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]},
        "rounds": rows,
        "bars": {"times_generate": 2.5, "times_llama_cpp": 4.0},
        "settings": vars(given),
    }
    result = keep("sample", numbers)
    print(json.dumps(result["median"]))


if __name__ == "__main__":
    main()
