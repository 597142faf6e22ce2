"""What a shape costs on a named piece of hardware: a small linear model, fitted to measurements.

Decoding is bound by memory: each token reads every matrix once, and each layer has a price of its
own, whatever its size (launches, norms, synchronisation). So, with coefficients that are never
negative,

    seconds a token = fixed + layers * layer + bytes read * byte
    bytes of memory = fixed + (bytes of weights + bytes of the cache of keys and values) * share

Both are for the Q8_0 build in llama.cpp, one stream, and a context of `CONTEXT` tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from overproof.core.artifact import Json
from overproof.core.errors import UsageError
from overproof.core.section import Positive, Section
from overproof.student.dimensions import Dimensions

CONTEXT = 512  # tokens; as the engine is asked for when builds are timed (release/speed.py)
Q8_BYTES = 34 / 32  # of a weight in Q8_0: 32 of one byte share a scale of two
NORM_BYTES = 4
CACHE_BYTES = 2  # of a key or a value, in half precision
LEAST_SHAPES = 4  # one more than coefficients
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Predicted:
    """What a shape is expected to cost.

    Attributes:
        latency_ms: milliseconds a decoded token.
        memory_bytes: peak of the engine's process.
        parameters: exact.
    """

    latency_ms: float
    memory_bytes: float
    parameters: int


class Measured(Section):
    """One shape that was run."""

    layers: Positive
    hidden: Positive
    heads: Positive
    kv_heads: Positive
    head_width: Positive
    mlp_width: Positive
    vocabulary: Positive
    tied: bool
    decode_seconds: float = Field(gt=0.0)
    peak_bytes: Positive

    @property
    def shape(self) -> Dimensions:
        """Its numbers."""
        return Dimensions(
            **self.model_dump(exclude={"decode_seconds", "peak_bytes"}),
        )


class Hardware(Section):
    """A measured piece of hardware: the file that `overproof plan --measure` writes.

    Attributes:
        name: of the machine, as its owner calls it. date: of the measurement, ISO 8601.
        machine: processor, cores and versions.
        decode: seconds fixed, a layer, a byte. memory: bytes fixed, share of bytes held.
        decode_residual, memory_residual: largest relative error over the measured shapes.
    """

    format: Literal["overproof-hardware/1"] = "overproof-hardware/1"
    name: str = Field(min_length=1)
    date: str
    machine: dict[str, str | int | float]
    shapes: tuple[Measured, ...]
    decode: tuple[float, float, float]
    memory: tuple[float, float]
    decode_residual: float
    memory_residual: float

    @classmethod
    def fit(
        cls,
        name: str,
        date: str,
        machine: dict[str, str | int | float],
        shapes: Sequence[Measured],
    ) -> Self:
        """Fit both lines to what was measured, each shape's relative error counting alike.

        Raises:
            UsageError: fewer shapes than the lines need.
        """
        if len(shapes) < LEAST_SHAPES:
            raise UsageError(f"{len(shapes)} shapes were measured, wanted {LEAST_SHAPES} or more")
        time_S = np.array([one.decode_seconds for one in shapes])
        peak_S = np.array([float(one.peak_bytes) for one in shapes])
        decode, decode_gap = _fit(np.array([_decode_row(one.shape) for one in shapes]), time_S)
        memory, memory_gap = _fit(np.array([_memory_row(one.shape) for one in shapes]), peak_S)
        return cls(
            name=name,
            date=date,
            machine=machine,
            shapes=tuple(shapes),
            decode=(decode[0], decode[1], decode[2]),
            memory=(memory[0], memory[1]),
            decode_residual=round(decode_gap, 4),
            memory_residual=round(memory_gap, 4),
        )

    def predict(self, shape: Dimensions) -> Predicted:
        """What that shape costs here."""
        return Predicted(
            1000 * float(np.dot(self.decode, _decode_row(shape))),
            float(np.dot(self.memory, _memory_row(shape))),
            shape.parameters,
        )

    def to_json(self) -> Json:
        """As the file holds it."""
        return self.model_dump(mode="json")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read such a file.

        Raises:
            UsageError: there is none, or it holds something else.
        """
        hint = "overproof plan --measure FILE makes one of this machine"
        try:
            return cls.model_validate(json.loads(path.read_bytes()))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}", hint=hint) from error
        except (ValidationError, ValueError) as error:
            lines = str(error).splitlines()[:3]
            raise UsageError(f"{path} measures no hardware", details=lines, hint=hint) from error


def held_bytes(shape: Dimensions) -> float:
    """Bytes of the weights in Q8_0, a tied head once, and of keys and values of a context."""
    norms = NORM_BYTES * (2 * shape.layers + 1) * shape.hidden
    tables = shape.table * (1 if shape.tied else 2)
    weights = Q8_BYTES * (shape.layers * shape.layer_weights + tables)
    return weights + norms + cache_bytes(shape, CONTEXT)


def cache_bytes(shape: Dimensions, tokens: int) -> float:
    """Bytes of keys and values of so many tokens."""
    return 2 * CACHE_BYTES * shape.layers * shape.kv_heads * shape.head_width * tokens


def _decode_row(shape: Dimensions) -> list[float]:
    read = Q8_BYTES * shape.read_weights + cache_bytes(shape, CONTEXT // 2)
    return [1.0, float(shape.layers), read]


def _memory_row(shape: Dimensions) -> list[float]:
    return [1.0, held_bytes(shape)]


def _fit(rows_SF: Floats, wanted_S: Floats) -> tuple[list[float], float]:
    """Least squares of relative errors with no coefficient below zero.

    With so few coefficients every choice of those that are zero is tried, which is exact.

    Returns:
        the coefficients, and the largest relative error.
    """
    count = rows_SF.shape[1]
    scaled_SF = rows_SF / wanted_S[:, None]
    best, least = np.zeros(count), np.inf
    for size in range(1, count + 1):
        for used in map(list, combinations(range(count), size)):
            found, *_ = np.linalg.lstsq(scaled_SF[:, used], np.ones(len(wanted_S)), rcond=None)
            error = float(((scaled_SF[:, used] @ found - 1.0) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(count), error
                best[used] = found
    gaps_S = np.abs(scaled_SF @ best - 1.0)
    return [float(value) for value in best], float(gaps_S.max())
