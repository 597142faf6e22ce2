"""Measure what shapes cost on this machine, for budgets.

1. Make models of random weights around the recipe's base: fewer layers, narrower MLPs, a smaller
   vocabulary. What a shape costs does not depend on what its weights say.
2. Time each in the engine that builds are timed in, in turn.
3. Fit the lines of `student/cost.py`, and write them with every measurement and what they miss.
"""

from __future__ import annotations

import copy
import datetime as dt
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overproof.core import config as recipes
from overproof.core import device, host

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from overproof.core.artifact import Json  # noqa: E402
from overproof.core.digest import pretty  # noqa: E402
from overproof.core.disk import disk_errors, write_atomic  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.core.section import Section  # noqa: E402
from overproof.release.export import write_loaded  # noqa: E402
from overproof.release.quality import SPEED_TARGET  # noqa: E402
from overproof.release.speed import ROUNDS, Speed, measure  # noqa: E402
from overproof.release.targets import find  # noqa: E402
from overproof.student.cost import Hardware, Measured  # noqa: E402
from overproof.student.dimensions import Dimensions  # noqa: E402
from overproof.student.initial import control_tokens  # noqa: E402
from overproof.student.vocabulary import trim  # noqa: E402
from overproof.teacher import local  # noqa: E402

# Shares of the base's layers, of its MLPs' width and of its vocabulary, for each shape measured.
SHARES = ((1.0, 1.0, 1.0), (1.0, 0.25, 0.25), (0.5, 1.0, 0.25), (0.5, 0.5, 1.0), (0.25, 0.5, 0.25))
STEP = 64
LEAST_VOCABULARY = 1024  # holds the bytes and the control tokens of any family


class Config(Section):
    """What `overproof plan` is asked for."""

    measure: Path
    recipe: str = "support"
    name: str | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """A measured piece of hardware, and the file that it was written to."""

    hardware: Hardware
    file: Path
    exit_code: int = 0

    def to_json(self) -> Json:
        """For machines."""
        return self.hardware.to_json()


def run(config: Config) -> Result:
    """Measure this machine and write the file.

    Raises:
        UsageError: a recipe or a base that cannot be used.
        StageError: the engine cannot run a shape, or the file cannot be written.
    """
    recipe = recipes.load_recipe(recipes.find_recipe(config.recipe), config.overrides)
    hardware = measured(recipe, config.name or platform.node() or "this machine", ROUNDS)
    with disk_errors(config.measure.parent):
        config.measure.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(config.measure, pretty(hardware.to_json()).encode())
    return Result(hardware, config.measure)


def measured(recipe: Recipe, name: str, rounds: int) -> Hardware:
    """Steps 1 to 3.

    Args:
        name: of the machine. rounds: of each shape; the median counts.
    """
    base = local.load_base(recipe.student.base or recipe.teacher.model)
    with tempfile.TemporaryDirectory(prefix="overproof-plan-") as folder:
        # 1.
        shapes = dict(_write(base, Path(folder)))
        # 2.
        files = {file: Path(folder) / file for file in shapes}
        found: Mapping[str, Speed] = measure(files, rounds=rounds)
    # 3.
    rows = [
        Measured(
            **asdict(shape),
            decode_seconds=1.0 / found[file].decode_tokens_per_second,
            peak_bytes=found[file].peak_bytes,
        )
        for file, shape in shapes.items()
    ]
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return Hardware.fit(name, today, host.machine(), rows)


def _write(base: local.Teacher, folder: Path) -> Iterator[tuple[str, Dimensions]]:
    """Builds of random models around the base: the file's name and the shape."""
    whole, target = base.tokenizer.backend_tokenizer, find(SPEED_TARGET)
    mass = 1.0 / (1.0 + np.arange(whole.get_vocab_size()))
    for number, (layers, width, vocabulary) in enumerate(SHARES):
        config = copy.deepcopy(base.model.config)
        config.num_hidden_layers = max(1, round(layers * config.num_hidden_layers))
        config.intermediate_size = max(1, round(width * config.intermediate_size / STEP)) * STEP
        every = whole.get_vocab_size()
        size = min(every, max(LEAST_VOCABULARY, round(vocabulary * every)))
        trimmed = trim(whole, mass, size, control_tokens(base))
        config.vocab_size = trimmed.size
        name = f"{number}.gguf"
        write_loaded(target, _random(config), _wrapped(trimmed.tokenizer, base), folder / name)
        yield name, Dimensions.of(config)


def _random(config: Any) -> Any:
    config.bos_token_id = config.pad_token_id = None
    config.eos_token_id = 0
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _wrapped(tokenizer: Any, base: local.Teacher) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **base.tokenizer.special_tokens_map, chat_template=""
    )


def render(result: Result) -> str:
    """The lines and what they miss, for people."""
    found = result.hardware
    fixed, layer, byte = (1000 * value for value in found.decode)
    held, share = found.memory
    lines = [
        f"hardware    {found.name}: {found.machine.get('processor')}, measured {found.date}",
        f"decode      {fixed:.3g} ms a token, {layer:.3g} ms a layer, "
        f"{byte * 1e9:.3g} ms a GB read",
        f"memory      {held / 1e6:.1f} MB and {share:.3g} bytes a byte of weights and cache",
        f"residual    {found.decode_residual:.1%} of a latency, {found.memory_residual:.1%} of "
        f"the memory, at most, over {len(found.shapes)} shapes",
        f"written to  {result.file}",
    ]
    return "\n".join(lines)
