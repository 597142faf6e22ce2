"""Cost and memory of the stages that see every record, up to a million of them.

    python benchmarks/scale.py [--records 10000 100000 1000000] [--limit-mb 12000]

Each stage runs in a process of its own whose resident memory is watched from outside: `own_mb` is
what no mapped file and nobody else has, at the peak. Costs are seconds of the processor, so that
neighbours do not show. Linear cost: equal records a second in every row. Flat memory: no
`bytes_per_record` between the rows.

stages:
    certify    a JSONL file of records, to a certified data set
    answers    the answers of a finished stage `samples`, read
    signals    the cache of signals, read shard after shard
    examples   answers and signals, to a training set on the disk
    packing    an epoch of a training set, cut into steps, as each training worker does it
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402

import _synthetic  # noqa: E402
from _memory import MB, Stage, watch  # noqa: E402
from _results import keep  # noqa: E402
from overproof.core import artifact  # noqa: E402
from overproof.core.console import note  # noqa: E402
from overproof.core.sections import DataConfig, TrainConfig  # noqa: E402
from overproof.data.certify import certify  # noqa: E402
from overproof.student.examples import TrainSet, build_train_set  # noqa: E402
from overproof.student.train import batches  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402
from overproof.teacher.answers import read  # noqa: E402
from overproof.teacher.cache import SignalCache  # noqa: E402

TRAIN = TrainConfig(steps=1, sequences=6, sequence_length=256)  # as in the recipe `support`


def certifying(folder: Path, _: int) -> None:
    """See the module."""
    demands = DataConfig(train="records.jsonl", heldout="none", licence="CC0-1.0")
    certify(folder / "records.jsonl", demands, store=folder, name="certified")


def reading_answers(folder: Path, _: int) -> None:
    """See the module."""
    read(artifact.load(folder / "samples"))


def reading_signals(folder: Path, _: int) -> None:
    """See the module."""
    for _shard in SignalCache(folder / "signals", _synthetic.BINDING):
        pass


def making_examples(folder: Path, _: int) -> None:
    """See the module."""
    ids = np.arange(_synthetic.VOCABULARY)
    kept = np.ones(len(ids), np.bool_)
    vocabulary = Vocabulary(Tokenizer(models.BPE()), ids, ids, kept, {})
    answers = read(artifact.load(folder / "samples"))
    signals = SignalCache(folder / "signals", _synthetic.BINDING)
    build_train_set(folder / "made", answers.student_prefix, answers.train, vocabulary, signals)


def packing(folder: Path, count: int) -> None:
    """See the module; of the last few, which fill no whole step, none is waited for."""
    left = 0.9 * count
    for batch in batches(TrainSet.map(folder / "examples"), TRAIN, 0):
        left -= int(batch.segments_RT.max(1).sum())
        if left <= 0:
            return


STAGES: dict[str, Stage] = {
    "certify": certifying,
    "answers": reading_answers,
    "signals": reading_signals,
    "examples": making_examples,
    "packing": packing,
}


def prepare(folder: Path, count: int) -> None:
    """Write what the stages read."""
    _synthetic.records(folder / "records.jsonl", count)
    _synthetic.samples(folder, count)
    _synthetic.signals(folder / "signals", count)
    _synthetic.training_set(folder / "examples", count)


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--limit-mb", type=int, default=12_000, help="of a stage's own memory")
    given = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {name: {} for name in STAGES}
    for count in sorted(given.records):
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder), count)
            for name, stage in STAGES.items():
                rows[name][str(count)] = watch(stage, Path(folder), count, given.limit_mb)
                note(f"{name}, {count:,} records: {rows[name][str(count)]}")
    growth = {name: _growth(found) for name, found in rows.items()}
    numbers = {"stages": rows, "bytes_per_record": growth}
    print(json.dumps(keep("scale", numbers, ("psutil", "pyarrow")), indent=2))


def _growth(rows: dict[str, Any]) -> float | None:
    """Own memory for each record more, between the first and the last that finished."""
    done: list[tuple[int, int]] = [
        (int(count), row["own_mb"]) for count, row in rows.items() if "own_mb" in row
    ]
    if len(done) < 2:
        return None
    (few, small), (many, large) = done[0], done[-1]
    return round((large - small) * MB / (many - few), 1)


if __name__ == "__main__":
    main()
