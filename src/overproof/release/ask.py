"""Ask a release's flash model a question and watch it answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from overproof.core.errors import UsageError
from overproof.core.section import Positive, Section
from overproof.release.engine import Engine

BUILDS = ("gguf-q8_0", "gguf-f16")  # the smaller and faster one first
BUILD_FILE = "model.gguf"


class Config(Section):
    """What to ask, and how to answer."""

    release: Path = Field(description="folder of the release")
    question: str = Field(description="what the user says")
    max_tokens: Positive = Field(256, description="longest answer, tokens")
    temperature: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="0 takes the most likely token each time; unset: as the release advises"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="of the draws")


@dataclass(frozen=True)
class Result:
    """An answer and what it took.

    Attributes:
        build: the build that answered.
        system: the system message before the question, if any.
        finish: `stop` (the model ended its turn) or `length` (max_tokens reached).
    """

    question: str
    system: str | None
    answer: str
    build: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return asdict(self)


def to_stdout(piece: str) -> None:
    """Write a piece of an answer at once."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def run(config: Config, stream: Callable[[str], None] | None = None) -> Result:
    """Answer a question with the exported model.

    1. Find the release's build; the engine needs nothing else of it.
    2. Put the system message that the student was trained with before the question.
    3. Let the engine apply the file's own chat template, and stream the answer.

    Args:
        stream: gets each piece of text as it is written, such as `to_stdout`.

    Raises:
        UsageError: a blank question, no release there, or one without a build.
        StageError: the engine refuses the file, or the question is too long.
    """
    if not config.question.strip():
        raise UsageError("the question is blank", hint='overproof ask RELEASE "..."')
    # 1.
    build = find_build(config.release)
    # 2.
    system = find_system(config.release)
    messages = [{"role": "user", "content": config.question}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    # 3.
    with Engine(build) as engine:
        sampling = replace(engine.header.sampling, seed=config.seed)
        if config.temperature is not None:
            sampling = replace(sampling, temperature=config.temperature)
        answer = engine.chat(
            messages,
            max_tokens=config.max_tokens,
            sampling=sampling,
            stream=stream,
        )
    return Result(
        question=config.question,
        system=system,
        answer=answer.text,
        build=build.parent.name,
        finish=answer.finish,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        prefill_tokens_per_second=round(answer.prefill_tokens_per_second, 1),
        decode_tokens_per_second=round(answer.decode_tokens_per_second, 1),
    )


def render(result: Result) -> str:
    """The answer, for a person."""
    return result.answer.strip()


def find_build(release: Path) -> Path:
    """The file to run in a release.

    Raises:
        UsageError: no folder, no release, or no build for this engine.
    """
    if not release.is_dir():
        raise UsageError(
            f"no release at {release}", hint="give the folder that `overproof distill` wrote"
        )
    for name in BUILDS:
        path = release / "export" / name / BUILD_FILE
        if path.is_file():
            return path
    if not (release / "model").is_dir():
        raise UsageError(
            f"{release} is no release",
            details=["model/: missing", "export/: no build"],
            hint=_nearby(release) or "give the folder that `overproof distill` wrote",
        )
    raise UsageError(
        f"{release} has no build that can answer",
        details=[f"looked for export/{name}/{BUILD_FILE}" for name in BUILDS],
        hint="distil again with export.targets set to [gguf-q8_0]; model/ loads with transformers",
    )


def _nearby(folder: Path) -> str | None:
    """A hint where the release is one folder away: the run's folder was given, or a part."""
    for path in (folder / "release", folder.parent, folder.parent.parent):
        if (path / "export").is_dir():
            return f"did you mean {path}?"
    return None


def find_system(release: Path) -> str | None:
    """The system message that the report names, None where there is none.

    Raises:
        UsageError: the report cannot be read.
    """
    file = release / "report.json"
    if not file.is_file():
        return None
    try:
        report = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON", details=[str(error)]) from error
    found = report.get("system") if isinstance(report, dict) else None
    return found if isinstance(found, str) and found.strip() else None
