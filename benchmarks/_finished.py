"""The finished run that a benchmark starts from."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from overproof.core.config import Recipe
from overproof.teacher import local


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
