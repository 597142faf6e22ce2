"""The finished run that a benchmark starts from."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overproof.core.console import meter
from overproof.core.recipe import Recipe
from overproof.release.evaluate import evaluate
from overproof.student.vocabulary import Vocabulary
from overproof.teacher import local
from overproof.teacher.answers import Answers


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        folder: the run's.
        recipe: as it was run.
        given: the command line's arguments.
    """

    folder: Path
    recipe: Recipe
    given: argparse.Namespace

    @property
    def stages(self) -> Path:
        """The folder of its stages."""
        return self.folder / "stages"

    def evaluate(
        self, teacher: local.Teacher, said: Answers, vocabulary: Vocabulary, models: dict[str, Any]
    ) -> dict[str, Any]:
        """Measure models on the held-out answers, as the run did."""
        with meter("evaluating", len(said.heldout), "prompts") as bar:
            return evaluate(
                [(teacher.model, said.heldout)],
                said.prefix, said.student_prefix, vocabulary, models,
                self.recipe.evaluate, seed=self.recipe.seed, meter=bar,
                length=self.recipe.train.sequence_length,
            )  # fmt: skip

    def teacher(self) -> local.Teacher:
        """Load its teacher."""
        return local.load(self.given.teacher or self.recipe.teacher.model)


def finished(parser: argparse.ArgumentParser) -> Finished:
    """Read the command line, to which a run is added, and find the run."""
    parser.add_argument(
        "run", type=Path, nargs="?", default=Path("out/demo"), help="folder of a finished run"
    )
    parser.add_argument("--teacher", help="where it is now, if it is a file or folder of yours")
    given = parser.parse_args()
    report = given.run / "release/report.json"
    if not report.is_file():
        parser.error(f"no finished run at {given.run}; make one with: make demo")
    recipe = Recipe.model_validate(json.loads(report.read_bytes())["recipe"])
    return Finished(given.run, recipe, given)
