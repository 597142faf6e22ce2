"""Costs: a line fitted to shapes, what it predicts, and the file that holds it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny_teacher as tiny

from overproof.core.errors import UsageError
from overproof.core.sections import StudentConfig
from overproof.student import cost
from overproof.student.cost import Hardware, Measured
from overproof.student.dimensions import Dimensions

BASE = Dimensions(30, 576, 9, 3, 64, 1536, 49_152, True)
FIXED, LAYER, BYTE = 4e-4, 3e-5, 1 / 20e9  # seconds: a call, a layer, a byte at 20 GB/s
SHAPES = [
    BASE.cut(StudentConfig(name="s", layers=layers, mlp_width=width, vocabulary=vocabulary))
    for layers, width, vocabulary in (
        (30, 1536, 49_152), (30, 384, 8_192), (15, 1536, 8_192), (15, 768, 49_152), (8, 768, 8_192),
    )
]  # fmt: skip


def measured(noise: float = 0.0) -> list[Measured]:
    rows = []
    for place, shape in enumerate(SHAPES):
        read = 34 / 32 * shape.read_weights + cost.cache_bytes(shape, 256)
        seconds = FIXED + shape.layers * LAYER + read * BYTE
        seconds *= 1 + noise * (-1) ** place
        peak = round(9e6 + 1.02 * cost.held_bytes(shape))
        rows.append(Measured(**asdict(shape), decode_seconds=seconds, peak_bytes=peak))
    return rows


def hardware(noise: float = 0.0) -> Hardware:
    return Hardware.fit("box", "2026-11-28", {"processor": "P", "cores": 2}, measured(noise))


def test_the_line_is_found_again() -> None:
    found = hardware()
    assert found.decode == pytest.approx((FIXED, LAYER, BYTE), rel=1e-6)
    assert found.memory == pytest.approx((9e6, 1.02), rel=1e-6)
    assert found.decode_residual == found.memory_residual == 0.0
    other = BASE.cut(StudentConfig(name="s", layers=20, mlp_width=960, vocabulary=16_384))
    read = 34 / 32 * other.read_weights + cost.cache_bytes(other, 256)
    assert found.predict(other).latency_ms == pytest.approx(
        1000 * (FIXED + 20 * LAYER + read * BYTE)
    )
    assert found.predict(other).parameters == other.parameters


def test_noise_is_told_and_no_coefficient_is_below_zero() -> None:
    found = hardware(0.05)
    assert 0.01 < found.decode_residual < 0.08
    assert min(*found.decode, *found.memory) >= 0
    rows = measured()  # a machine on which nothing but layers counts, and big tables are faster
    odd = [
        row.model_copy(
            update={"decode_seconds": row.layers * 1e-4 / (row.vocabulary / 8192) ** 0.1}
        )
        for row in rows
    ]
    skewed = Hardware.fit("odd", "2026-11-28", {}, odd)
    assert min(skewed.decode) == 0.0
    assert skewed.decode_residual > 0.05


def test_the_file_comes_back_and_others_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "box.json"
    file.write_text(json.dumps(hardware().to_json()))
    assert Hardware.load(file) == hardware()
    file.write_text("{}")
    with pytest.raises(UsageError, match="measures no hardware"):
        Hardware.load(file)
    with pytest.raises(UsageError, match="cannot read") as caught:
        Hardware.load(tmp_path / "none.json")
    assert "overproof plan --measure" in caught.value.render()
    with pytest.raises(UsageError, match="3 shapes were measured"):
        Hardware.fit("box", "2026-11-28", {}, measured()[:3])


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"head_dim": 12}])
def test_parameters_are_those_of_the_model(changes: dict[str, object]) -> None:
    model = tiny.model(**changes)
    found = Dimensions.of(model.config)
    assert found.parameters == sum(values.numel() for values in model.parameters())


def test_what_is_held_is_the_file_and_the_cache(tmp_path: Path) -> None:
    """Q8_0 of a real build, its header aside."""
    from overproof.release.targets import find

    model = tiny.model(hidden_size=64, intermediate_size=128, head_dim=32)
    teacher = tiny.teacher()
    model.save_pretrained(tmp_path / "model")
    teacher.tokenizer.save_pretrained(tmp_path / "model")
    find("gguf-q8_0").write(tmp_path / "model", tmp_path / "model.gguf")
    shape = Dimensions.of(model.config)
    weights = cost.held_bytes(shape) - cost.cache_bytes(shape, cost.CONTEXT)
    header = (tmp_path / "model.gguf").stat().st_size - weights
    assert 0 < header < 30_000
