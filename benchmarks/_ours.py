"""Our trainer on the cached signals of a finished run, with other sets of tokens and positions."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from transformers import AutoModelForCausalLM

from _body import body_only
from _finished import Finished
from _pace import Learned, Pace, Run
from overproof.core import artifact
from overproof.core.config import with_overrides
from overproof.core.errors import UsageError
from overproof.core.methods import Text
from overproof.core.recipe import Recipe
from overproof.student.examples import TrainSet, build_train_set
from overproof.student.initial import Initial, name_control_tokens
from overproof.student.train import train
from overproof.student.vocabulary import Vocabulary
from overproof.teacher import local
from overproof.teacher.answers import Answers, made_of
from overproof.teacher.cache import SignalCache
from overproof.teacher.kept import kept_of, spread_temperature
from overproof.teacher.signals import answer_rows, write_signals
from overproof.teacher.tokens import token_ids

PASSED = 512  # examples of the pass that is timed: two shards a core and more


@dataclass(frozen=True)
class Ours:
    """Our trainer, ready to be run.

    Attributes:
        examples: folder of its training set.
    """

    start: Initial
    recipe: Recipe
    examples: Path

    @classmethod
    def of(
        cls,
        run: Finished,
        answers: Answers,
        start: Initial,
        overrides: Sequence[str],
        examples: Path,
        *,
        prompts: bool,
    ) -> Self:
        """Make the training set of the run's answers and signals.

        Args:
            overrides: of the run's recipe.
            prompts: whether prompts are learned too; the run must have kept their signals.
        """
        kept = run.recipe.signals
        only = answer_rows(answers.train) if kept.prompts and not prompts else None
        made = made_of(artifact.load(run.stages / "samples"), run.recipe)
        build_train_set(
            examples,
            answers.student_prefix,
            answers.train,
            start.vocabulary,
            SignalCache(run.stages / "signals", made, only),
            prompts=prompts,
            temperature=spread_temperature(kept),
        )
        return cls(start, with_overrides(run.recipe, overrides), examples)

    def learned(self, steps: int) -> Learned:
        """What it learns from in its first steps."""
        return Learned.of(TrainSet.map(self.examples), self.recipe, steps)

    def train(self, steps: int) -> Run:
        """Train a copy of the initial student."""
        recipe, model = self._of(steps), copy.deepcopy(self.start.model)
        tokens, pace = self.learned(steps).tokens, Pace("ours", steps)
        with tempfile.TemporaryDirectory() as folder:
            train(model, self.examples, recipe.train, recipe.seed, Path(folder), pace)
        return pace.run(tokens, model.eval())

    def body(self, steps: int) -> Run:
        """The same steps without head and loss."""
        return body_only(self.start.model, self.examples, self._of(steps), self.learned(steps))

    def _of(self, steps: int) -> Recipe:
        return with_overrides(self.recipe, [f"train.steps={steps}"])


def all_tokens(start: Initial, teacher: local.Teacher) -> Initial:
    """The initial student with all of the teacher's tokens; layers and norms are the same.

    A student's rows are its teacher's until it is trained, so nothing has to be fitted again.
    """
    rows = teacher.model.config.vocab_size
    ids = np.arange(rows)
    texts = {number: text for text, number in token_ids(teacher.tokenizer_state).items()}
    whole = Vocabulary(teacher.tokenizer.backend_tokenizer, ids, ids, np.ones(rows, bool), texts)
    config = copy.deepcopy(start.model.config)
    config.vocab_size = rows
    name_control_tokens(config, teacher, whole)
    model = AutoModelForCausalLM.from_config(config, dtype=start.model.dtype)
    theirs = {
        "model.embed_tokens.weight": teacher.model.get_input_embeddings().weight,
        "lm_head.weight": teacher.model.get_output_embeddings().weight,
    }
    model.load_state_dict({**start.model.state_dict(), **theirs})
    model.tie_weights()
    return Initial(model.eval(), whole, start.facts)


def signal_pass(run: Finished, teacher: local.Teacher, answers: Answers, folder: Path) -> float:
    """Answer tokens a second of a pass of the teacher that keeps the signals of given text.

    The run keeps them while it samples, where they cost less; start of the workers included.
    """
    signals = run.recipe.signals
    if isinstance(signals, Text):
        raise UsageError("signals.kind `text` keeps nothing that could be timed")
    few, kept = answers.train[:PASSED], replace(kept_of(signals), prompts=False)
    folder.mkdir()
    tokens = sum(len(one.answer) for one in few)
    pace = Pace("signals", tokens)
    write_signals(
        teacher.half, answers.prefix, few, folder,
        length=run.recipe.train.sequence_length, kept=kept, progress=pace,
    )  # fmt: skip
    return tokens / (time.perf_counter() - pace.began)
