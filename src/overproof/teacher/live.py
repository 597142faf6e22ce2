"""An answer under way, and how its next token is drawn; the same for every sampler.

Shape suffixes: P positions, K tokens of a position, V vocabulary, S tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from overproof.teacher.kept import Exact, Signals, exact
from overproof.teacher.request import Answer, Drawing, Request


def draw_next(lives: Sequence[Live], part: Exact, drawing: Drawing) -> list[int]:
    """Draw the next token of each answer, and keep what it was drawn from, if that is wanted.

    Args:
        part: the distributions, in the order of the answers.
    """
    uniform_P = torch.tensor([live.next_uniform() for live in lives])
    tokens: list[int] = choose(part, uniform_P, drawing).tolist()
    signals = None
    if drawing.signals and any(live.keeps for live in lives):
        offset_P = torch.tensor([live.next_offset() for live in lives])
        signals = drawing.signals.take(part, offset_P)
    for number, (live, token) in enumerate(zip(lives, tokens, strict=True)):
        live.add(token, signals, number)
    return tokens


def choose(part: Exact, uniform_P: Tensor, drawing: Drawing) -> Tensor:
    """Draw from the top of the logits by inverting the distribution function.

    Args:
        uniform_P: a uniform number for each row.

    Returns:
        a token for each row, (P,).
    """
    if drawing.top_p >= 1.0 and drawing.top_k >= part.logits_PV.shape[1]:
        # From all of them there is nothing to sort.
        reached_PV = torch.softmax(part.logits_PV / drawing.temperature, dim=-1).cumsum(-1)
        whole_P1 = reached_PV[:, -1:]
        threshold_P1 = uniform_P[:, None].to(reached_PV.dtype) * whole_P1
        found_P = torch.searchsorted(reached_PV, threshold_P1, right=True)[:, 0]
        return found_P.minimum((reached_PV < whole_P1).sum(-1))  # a uniform may round to 1
    # Taken apart from the signals' own: of equal logits, which come first depends on the count.
    top_PK, ids_PK = part.top(drawing.top_k)
    mass_PK = torch.softmax(top_PK / drawing.temperature, dim=-1)
    before_PK = mass_PK.cumsum(-1) - mass_PK
    kept_PK = before_PK < drawing.top_p
    kept_PK[:, 0] = True  # the most likely token stays, even at top_p 0
    mass_PK = torch.where(kept_PK, mass_PK, 0.0)
    reached_PK = mass_PK.cumsum(-1)
    threshold = uniform_P[:, None] * reached_PK[:, -1:]
    chosen = (reached_PK <= threshold).sum(-1, keepdim=True)
    chosen = chosen.minimum(kept_PK.sum(-1, keepdim=True) - 1)  # a uniform may round to 1
    return ids_PK.gather(1, chosen)[:, 0]


class Live:
    """An answer under way."""

    def __init__(self, request: Request, drawing: Drawing) -> None:
        self.request, self.tokens = request, list[int]()
        source = np.random.Generator(np.random.Philox(request.seed))
        self._uniform = source.random(drawing.max_new_tokens)
        # Streams of their own: whether signals are kept changes no answer.
        self._offset = self._stream(1).random(drawing.max_new_tokens)
        self.keeps = request.signals
        self._drawing = drawing
        self._signals: list[Signals] = []

    def next_uniform(self) -> float:
        """For the draw of the next token."""
        return float(self._uniform[len(self.tokens)])

    def next_offset(self) -> float:
        """For what is kept of its distribution."""
        return float(self._offset[len(self.tokens)])

    def prompt_offsets(self) -> Tensor:
        """A uniform number for each position inside the prompt."""
        return torch.from_numpy(self._stream(2).random(len(self.request.ids) - 1))

    @property
    def ended(self) -> bool:
        """Whether its last token ends it, or the longest length is reached."""
        full = len(self.tokens) >= self._drawing.max_new_tokens
        return full or self.tokens[-1] in self._drawing.stop_ids

    @property
    def inside(self) -> int:
        """Positions inside the prompt whose distributions are wanted."""
        kept = self._drawing.signals
        return len(self.request.ids) - 1 if kept and kept.prompts and self.keeps else 0

    def read(self, logits_SV: Tensor, hidden_SE: Tensor) -> None:
        """Keep the distributions inside the prompt, of which there are `inside`."""
        kept = self._drawing.signals
        assert kept
        offset_S = self.prompt_offsets()
        for part in exact(logits_SV, hidden_SE):
            self.keep(kept.take(part, offset_S[part.where]))

    def add(self, token: int, signals: Signals | None, row: int) -> None:
        """The next token, and the distribution that it was drawn from."""
        self.tokens.append(token)
        if self.keeps and signals:
            self.keep(signals.rows(slice(row, row + 1)))

    def keep(self, signals: Signals) -> None:
        """The distributions of the positions that follow those kept so far."""
        self._signals.append(signals)

    def _stream(self, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(self.request.seed).jumped(number))

    def answer(self) -> Answer:
        """What was said so far."""
        joined = Signals.joined(self._signals) if self._signals else None
        return Answer(self.tokens, joined)
