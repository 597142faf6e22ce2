"""A cache of signals on the disk: shards, how to read them, and what they are bound to.

A cache says of what it was made. Signals of another teacher, tokenizer, template, text or sampler
would train a student without an error, on targets that mean something else; they are refused, and
the message names what differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import count, takewhile
from pathlib import Path

import torch
from numpy import bool_
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from overproof.core.digest import pretty
from overproof.core.disk import write_atomic
from overproof.core.errors import TrustError
from overproof.teacher.kept import Kept, Sampled, Signals, Spread, States, TopK

SHARD_EXAMPLES = 128  # examples a shard
DESCRIPTION, HEAD = "signals.json", "head.safetensors"
KINDS: Mapping[str, type[Kept]] = {"sampled": Sampled, "top-k": TopK, "exact": States}

Binding = Mapping[str, str]  # what a cache was made of: name and digest
ShardFile = Callable[[Path, int], Path]  # where a shard lies: folder and number


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard of a cache lies."""
    return folder / f"signals-{number:05d}.safetensors"


def shard_files(folder: Path, file: ShardFile = shard_file) -> list[Path]:
    """All shards of a finished cache, in the order of the examples."""
    return list(takewhile(Path.is_file, (file(folder, number) for number in count())))


def cache_files(folder: Path) -> list[Path]:
    """All files of a finished cache; none if there is none."""
    more = [folder / name for name in (DESCRIPTION, HEAD)]
    return shard_files(folder) + [file for file in more if file.is_file()]


def write_shard(path: Path, kept: Kept, signals: Signals) -> None:
    """Write one shard, whole or not at all."""
    write_atomic(path, save({name: one.contiguous() for name, one in kept.pack(signals).items()}))


def describe(folder: Path, kept: Kept, binding: Binding, head_VE: Tensor) -> None:
    """Say beside the shards how they are read, and of what they were made.

    Args:
        kept: as it was used, within the teacher's vocabulary.
        head_VE: the teacher's output embedding; written where hidden states are kept.
    """
    kind = next(name for name, one in KINDS.items() if isinstance(kept, one))
    if isinstance(kept, States):
        write_atomic(folder / HEAD, save({"weight": head_VE.detach().contiguous()}))
    text = pretty({"kept": {"kind": kind, **asdict(kept)}, "made_of": dict(binding)})
    write_atomic(folder / DESCRIPTION, text.encode())


class SignalCache(Iterable[Spread]):
    """A finished cache: its shards, one at a time, in the order of the examples.

    A long run's signals take gigabytes, a shard ten megabytes.

    Args:
        binding: what it must have been made of.
        only: which of all positions are wanted; None: every one.
        file: where a shard lies.

    Raises:
        TrustError: it was made of something else; the message names what.
    """

    def __init__(
        self,
        folder: Path,
        binding: Binding,
        only: NDArray[bool_] | None = None,
        file: ShardFile = shard_file,
    ) -> None:
        found = json.loads((folder / DESCRIPTION).read_bytes())
        _demand_equal(folder, found["made_of"], binding)
        how = dict(found["kept"])
        self.kept: Kept = KINDS[how.pop("kind")](**how)
        self._head = folder / HEAD
        self._shards = shard_files(folder, file)
        self._only = only

    @property
    def head_VE(self) -> Tensor | None:
        """The teacher's output embedding, where hidden states are kept."""
        return load_file(self._head)["weight"] if self._head.is_file() else None

    def signals(self) -> Iterator[Signals]:
        """As they were kept."""
        start = 0
        for path in self._shards:
            found = self.kept.unpack(load_file(path))
            which = slice(start, start + len(found))
            start = which.stop
            if self._only is not None:
                found = found.rows(torch.from_numpy(self._only[which]))
            yield found

    def __iter__(self) -> Iterator[Spread]:
        """As tokens and a tail, whatever the kind."""
        head_VE = self.head_VE
        for shard in self.signals():
            yield shard.spread(head_VE)


def _demand_equal(folder: Path, got: Binding, wanted: Binding) -> None:
    wrong = [
        f"{name}: got {got.get(name)}, wanted {wanted.get(name)}"
        for name in sorted({*got, *wanted})
        if got.get(name) != wanted.get(name)
    ]
    if wrong:
        raise TrustError(
            f"the signals in {folder} were made of something else",
            details=wrong,
            hint="remove the folder, and run the same command again: they are made anew",
        )
