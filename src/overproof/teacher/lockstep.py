"""Drawing answers as transformers itself runs a model: prompts of one length, one token a step.

For architectures whose cache knows more than keys and values: compressed windows, running states.
Such a cache takes no filler, so that the rows of a batch must be of one length at all times. And a
row's numbers may depend on its neighbours, which share experts with it: so a group of requests is
drawn as a whole, and which requests are a group follows from all that are asked.

Shape suffixes: B rows of a group, S tokens of a prompt, E width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from overproof.teacher.forward import head_of
from overproof.teacher.kept import exact
from overproof.teacher.live import Live, draw_next
from overproof.teacher.request import Answer, Drawing, Request


def groups(requests: Sequence[Request], rows: int) -> list[list[Request]]:
    """Requests that are drawn together: of one length, so many at most; the longest prompts first.

    Some of the groups, put together and grouped again, give the same groups: only the last of a
    length may have fewer.
    """
    ordered = sorted(requests, key=lambda request: (-len(request.ids), request.key))
    found = list[list[Request]]()
    for request in ordered:
        last = found[-1] if found else []
        if last and len(last) < rows and len(last[0].ids) == len(request.ids):
            last.append(request)
        else:
            found.append([request])
    return found


class Lockstep:
    """One process: group after group, with the model's own cache."""

    def __init__(self, model: Any, prefix: Sequence[int], drawing: Drawing) -> None:
        kept = drawing.signals.within(model.config.vocab_size) if drawing.signals else None
        self.model, self.prefix = model, tuple(prefix)
        self.drawing = replace(drawing, signals=kept)

    def draw(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Yield each request with its answer, group after group."""
        for group in groups(requests, self.drawing.slots):
            yield from self._group(group)

    @torch.inference_mode()
    def _group(self, group: Sequence[Request]) -> list[tuple[Request, Answer]]:
        """The answers of a group.

        1. All prompts go through the model; what is wanted inside of them is kept.
        2. One token for each row that has not ended; the others go on too, which nobody reads.
        """
        # 1.
        lives = [Live(request, self.drawing) for request in group]
        ids = torch.tensor([[*self.prefix, *request.ids] for request in group])
        hidden_BSE, cache = self._step(ids, None)
        own_BSE = hidden_BSE[:, len(self.prefix) :]
        head = head_of(self.model)
        for live, hidden_SE in zip(lives, own_BSE, strict=True):
            if live.inside:
                inside_SE = hidden_SE[: live.inside]
                live.read(head(inside_SE).cpu(), inside_SE.cpu())
        # 2.
        tokens_B = torch.zeros(len(group), dtype=torch.long)
        hidden_BE, alive = own_BSE[:, -1], list(range(len(group)))
        while True:
            for part in exact(head(hidden_BE)[alive].cpu(), hidden_BE[alive].cpu()):
                rows = alive[part.where]
                drawn = draw_next([lives[row] for row in rows], part, self.drawing)
                tokens_B[rows] = torch.tensor(drawn)
            alive = [row for row in alive if not lives[row].ended]
            if not alive:
                return [(live.request, live.answer()) for live in lives]
            hidden_BSE, cache = self._step(tokens_B[:, None], cache)
            hidden_BE = hidden_BSE[:, -1]

    def _step(self, ids_BS: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Last hidden states of new tokens, and the cache that holds them and all before."""
        ids_BS = ids_BS.to(self.model.device)
        out = self.model.base_model(input_ids=ids_BS, past_key_values=cache, use_cache=True)
        return out.last_hidden_state, out.past_key_values
