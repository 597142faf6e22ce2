"""The plain loop: what most people write first.

A live teacher, the divergence over the whole vocabulary, one padded example a row, bf16 autocast,
all cores as OpenMP threads.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from _pace import Learned, Pace, Run
from overproof.core import device
from overproof.core.recipe import Recipe
from overproof.student.examples import respell
from overproof.student.initial import Initial
from overproof.student.optimizer import optimizers, rate, set_rate
from overproof.teacher import local
from overproof.teacher.answers import Answers


def plain(
    start: Initial, teacher: local.Teacher, answers: Answers, recipe: Recipe, learned: Learned
) -> Run:
    """Train a copy of the initial student on the examples of our trainer's steps."""
    torch.set_num_threads(device.cores())
    start = replace(start, model=copy.deepcopy(start.model).train())
    student, live = start.model, teacher.half
    made = optimizers(recipe.train, list(student.named_parameters()))
    pace = Pace("plain", recipe.train.steps)
    for step in range(recipe.train.steps):
        loss = _loss(start, live, answers, learned.examples[step], recipe.signals.prompts)
        set_rate(made, rate(recipe.train, step))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.train.clip)
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()
        pace.advance(1, f"{loss.detach():.3f} nats per token")
    return pace.run(learned.tokens[: recipe.train.steps], student.eval())


def _loss(
    start: Initial, live: Any, answers: Answers, examples: list[int], prompts: bool
) -> torch.Tensor:
    """Mean divergence of a step's positions."""
    columns = torch.from_numpy(start.vocabulary.student_ids_U)
    head = list(start.vocabulary.spell(answers.student_prefix))
    few = [answers.train[number] for number in examples]
    spelled = [respell(one, start.vocabulary, prompt=prompts) for one in few]
    with torch.inference_mode():
        logits = live(**_padded([list(answers.prefix) + list(one.tokens) for one in few])).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = start.model(**_padded([head + one.tokens for one in spelled])).logits
    loss, count = torch.zeros(()), 0
    for row, (one, words) in enumerate(zip(few, spelled, strict=True)):
        there = len(answers.prefix) + np.array(one.targets(prompt=prompts))
        here = len(head) + np.flatnonzero(np.array(words.teacher_positions) >= 0)
        p = torch.softmax(logits[row, there].float(), -1).clone()
        target = torch.zeros(len(there), start.vocabulary.size).index_add_(1, columns, p)
        log_q = torch.log_softmax(mine[row, here].float(), -1)
        loss = loss + (torch.xlogy(target, target) - target * log_q).sum()
        count += len(there)
    return loss / count


def _padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
    }
