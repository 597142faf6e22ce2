"""On-policy distillation: the student speaks, and the teacher judges every token of it.

What a student does after its own words is never tried on the teacher's text (arXiv 2306.13649).
Here, in each worker,

1. the student answers prompts with the sampler that the teacher's answers are drawn with, from the
   weights of the moment;
2. its text is cut into tokens as the teacher would cut it (`recut.py`), and then spelled in the
   student's: the teacher's distribution is one over its own tokens;
3. the teacher reads it, and its last hidden states give the loss its whole distribution.

What a worker draws follows from the seed, the number of the drawing and the weights. What is drawn
and not yet learned from is part of a checkpoint, so that a run that was killed ends in the same
bits.

Shape suffixes: N positions, M those with a signal of the teacher, E the teacher's width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from overproof.core.digest import sha256_json
from overproof.core.methods import OnPolicy
from overproof.core.recipe import Recipe
from overproof.core.sections import TrainConfig
from overproof.data.pack import Packed, pack
from overproof.student.examples import TrainSet, lay, respell
from overproof.student.recut import Recut
from overproof.student.targets import StateTargets, around_states
from overproof.student.vocabulary import Vocabulary
from overproof.teacher.answers import Answers
from overproof.teacher.example import Example
from overproof.teacher.forward import head_of, laid, packs, states_at
from overproof.teacher.local import Teacher
from overproof.teacher.request import Drawing, Request
from overproof.teacher.sample import sampler
from overproof.teacher.signals import BATCH_SEQUENCES, target_mask


@dataclass(frozen=True)
class Judge:
    """The teacher, and what the student is asked: the same in every worker.

    Attributes:
        model: the teacher's, in the type to compute in. tokenizer: its own.
        vocabulary: the student's.
        prefix: the teacher's tokens that every conversation starts with for the teacher.
        student_prefix: the teacher's tokens that it starts with for the student.
        prompts: key of each record, and its own tokens of the teacher.
        stop_ids: the teacher's. max_new_tokens: of an answer. slots: answers drawn together.
        temperature: of the distributions.
    """

    model: Any
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    prefix: tuple[int, ...]
    student_prefix: tuple[int, ...]
    prompts: tuple[tuple[str, tuple[int, ...]], ...]
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    slots: int
    temperature: float = 1.0

    @staticmethod
    def of(
        teacher: Teacher,
        vocabulary: Vocabulary,
        answers: Answers,
        examples: Sequence[Example],
        recipe: Recipe,
    ) -> Judge:
        """The teacher as it computes fast, and the prompts of its own examples, each once."""
        return Judge(
            teacher.half,
            teacher.tokenizer.backend_tokenizer,
            vocabulary,
            answers.prefix,
            answers.student_prefix,
            tuple({one.key: one.prompt for one in examples}.items()),
            teacher.stop_ids,
            recipe.sample.max_new_tokens,
            recipe.sample.batch,
            recipe.signals.temperature,
        )


class Turn(NamedTuple):
    """A prompt of a step: its place among the prompts, and how often it was asked before."""

    prompt: int
    draw: int


def turns(prompts: int, seed: int, start: int, count: int) -> list[Turn]:
    """Some of the prompts' endless order, shuffled anew each time that all have been asked."""
    found = list[Turn]()
    for draw in range(start // prompts, (start + count - 1) // prompts + 1):
        order = np.random.default_rng([seed, draw, 1]).permutation(prompts)
        first = max(start - draw * prompts, 0)
        last = min(start + count - draw * prompts, prompts)
        found += [Turn(int(one), draw) for one in order[first:last]]
    return found


@dataclass(frozen=True)
class Shares:
    """Who asks what, and when.

    Attributes:
        prompts: how many there are. answers: of a worker in a step.
        ahead: on-policy steps that are drawn for at once. steps: on-policy steps in all.
    """

    prompts: int
    answers: int
    workers: int
    ahead: int
    steps: int
    seed: int

    def asked(self, number: int) -> list[Turn]:
        """What all workers ask for an on-policy step; each takes every so manieth."""
        each = self.answers * self.workers
        return turns(self.prompts, self.seed, number * each, each)

    def drawing(self, number: int, rank: int) -> list[list[Turn]]:
        """What a worker asks in a drawing, step by step."""
        first = number * self.ahead
        steps = range(first, min(first + self.ahead, self.steps))
        return [self.asked(step)[rank :: self.workers] for step in steps]


def answers_a_step(data: TrainSet, config: TrainConfig, workers: int) -> int:
    """Answers of a worker in a step: they fill its sequences if they are as long as the teacher's.

    Args:
        data: the teacher's answers.
    """
    if data.alone:
        return math.ceil(config.sequences / workers)
    room = config.sequences * (config.sequence_length - len(data.prefix))
    return max(1, round(room / float(np.mean(data.lengths)) / workers))


def shares_of(
    data: TrainSet, config: TrainConfig, workers: int, prompts: int, seed: int
) -> Shares | None:
    """Who asks the student what; None: the recipe is not on-policy."""
    if config.on_policy is None:
        return None
    each = answers_a_step(data, config, workers)
    return Shares(prompts, each, workers, config.on_policy.ahead, config.own_steps, seed)


Drawn = list[tuple[str, list[int], list[int]]]  # of a step: key, prompt and answer of the teacher's


class Rollouts:
    """One worker's answers, and what the teacher says of them.

    Attributes:
        pending: drawn and not learned from yet, step by step.
    """

    def __init__(
        self, rank: int, shares: Shares, student: Any, judge: Judge, config: TrainConfig
    ) -> None:
        assert config.on_policy is not None
        self.rank, self.shares, self.judge = rank, shares, judge
        self.policy: OnPolicy = config.on_policy
        self.length = config.sequence_length
        self.rows = math.ceil(config.sequences / shares.workers)
        self.student = _speaker(student)
        self.recut = Recut(judge.tokenizer, judge.vocabulary)
        self.prefix = judge.vocabulary.spell(judge.student_prefix)
        self.pending: list[Drawn] = []

    def next(self, number: int) -> tuple[Packed, TrainSet, str]:
        """The sequences of this on-policy step, their set, and the SHA-256 of what they say.

        No more sequences than a step of the teacher's text has: what is left over, because the
        student says more than its teacher, is dropped.
        """
        drawing, step = divmod(number, self.shares.ahead)
        if step == 0:
            self.pending = self.draw(drawing)
        data = self.judged(self.pending.pop(0))
        packed = pack(data.prefix.tolist(), data.examples, self.length, alone=data.alone)
        packed = packed.rows(slice(self.rows), whole=True)
        return packed, data, _digest(packed, data)

    def _say(self, requests: Sequence[Request]) -> dict[str, list[int]]:
        """Answers of the student as it is now, by the requests' keys, in the teacher's tokens."""
        vocabulary, judge = self.judge.vocabulary, self.judge
        drawing = Drawing(
            self.policy.temperature,
            self.policy.top_p,
            vocabulary.size,
            judge.max_new_tokens,
            min(judge.slots, len(requests)),
            vocabulary.ends(judge.stop_ids),
        )
        speaker = sampler(self.student, self.prefix, requests, drawing)
        return {
            request.key: self.recut.tokens(answer.tokens)
            for request, answer in speaker.draw(requests)
        }

    def draw(self, number: int) -> list[Drawn]:
        """Ask the student, as it is now, all that a drawing asks."""
        turns_of = self.shares.drawing(number, self.rank)
        steps = [[self._request(turn) for turn in step] for step in turns_of]
        said = self._say([request for step in steps for request, _, _ in step])
        return [
            [(key, list(ids), said[request.key]) for request, key, ids in step] for step in steps
        ]

    def _request(self, turn: Turn) -> tuple[Request, str, tuple[int, ...]]:
        """What the student is asked; key and own tokens of the teacher's of the prompt."""
        key, ids = self.judge.prompts[turn.prompt]
        # Draws of its own: by the teacher's the student would be led back to the teacher's text.
        own = self.judge.vocabulary.spell(ids)
        return Request.make(key, own, self.shares.seed, turn.draw, whose="student"), key, ids

    def judged(self, drawn: Drawn) -> TrainSet:
        """What was said as a training set, with the teacher's states as its targets."""
        judge = self.judge
        whole = (Example(key, tuple(ask), tuple(say)) for key, ask, say in drawn)
        examples = [one for one in map(self._fitting, whole) if one.answer]
        respelled = [respell(example, judge.vocabulary) for example in examples]
        arrays, signalled_N = lay(self.prefix, examples, respelled, alone=not packs(self.student))
        head_UE = head_of(judge.model).weight.detach()
        places_M = np.flatnonzero(signalled_N)
        targets = StateTargets(
            **around_states(np.roll(arrays["tokens_N"], -1), places_M, judge.vocabulary, head_UE),
            states_ME=_states(judge, examples, self.length).view(torch.int16).numpy(),
            temperature=np.array([judge.temperature]),
        )
        # The later pieces of a spelling are the student's own choice: nobody judges them.
        return TrainSet(**arrays, weight_N=signalled_N.astype(np.float32), targets=targets)

    def _fitting(self, example: Example) -> Example:
        """The example, its answer cut off where a sequence ends."""
        pieces = [len(self.judge.vocabulary.pieces(token)) for token in example.tokens]
        ends = np.cumsum(pieces) + len(self.prefix)
        most = int((ends <= self.length).sum()) - len(example.prompt)
        return Example(example.key, example.prompt, example.answer[: max(0, most)])


def _digest(packed: Packed, data: TrainSet) -> str:
    """SHA-256 of keys and tokens of the examples in some sequences, in the set's order."""
    there, texts = data.numbers(packed.source_RT), data.examples
    return sha256_json([[data.keys[one].decode(), texts[one]] for one in there])


@torch.inference_mode()
def _states(judge: Judge, examples: Sequence[Example], length: int) -> Tensor:
    """The teacher's last hidden state before each token of the answers, bf16, (M, E)."""
    texts = [example.tokens for example in examples]
    longest = max(map(len, texts), default=0) + len(judge.prefix)
    packed = laid(judge.model, judge.prefix, texts, max(length, longest))
    wanted_N = target_mask(examples)
    shape = int(wanted_N.sum()), judge.model.config.hidden_size
    found_ME = torch.empty(shape, dtype=torch.bfloat16)
    for where, hidden_PE in states_at(judge.model, packed, wanted_N, BATCH_SEQUENCES):
        found_ME[torch.from_numpy(where)] = hidden_PE.to(torch.bfloat16)
    return found_ME


def _speaker(student: Any) -> Any:
    """The student once more, with the same weights in the same memory, for the sampler.

    The sampler sets an attention of its own, which training has no use for.
    """
    memo = {id(one): one for one in (*student.parameters(), *student.buffers())}
    return copy.deepcopy(student, memo)
