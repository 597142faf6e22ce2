"""Drawing the teacher's answers: fast, durable a request, repeatable bit for bit.

One process a core, each with its own slots and one thread: no core waits for another at the end
of each small operation (docs/log.md has the measurement). On other machines the same, see
`teacher.elsewhere`.

The model may lie on any device; what is drawn from its logits is drawn on the processor.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.console import Meter  # noqa: E402
from overproof.core.workers import spread  # noqa: E402
from overproof.teacher.forward import packs, share  # noqa: E402
from overproof.teacher.journal import Journal  # noqa: E402
from overproof.teacher.kept import Exact, exact  # noqa: E402
from overproof.teacher.live import Live, draw_next  # noqa: E402
from overproof.teacher.lockstep import Lockstep, groups  # noqa: E402
from overproof.teacher.request import Answer, Drawing, Request  # noqa: E402
from overproof.teacher.slots import ATTENTION, SlotCache  # noqa: E402

PLACES_STEP = 32  # attention looks at a multiple of this many places; fewer shapes, same kernels
PREFILL_STEP = 8  # a prompt is filled up to a multiple of this; less filler, fewer prompts a group
PREFILL_ROWS = 8  # prompts taken in together; always this many rows, so that shapes repeat

# Draws units of requests, each as a whole: from a model, the tokens of the shared prefix, and the
# places of a slot, it makes each request's key, tokens and packed signals, in any order.
Pool = Callable[
    [Any, Sequence[int], list[list[Request]], Drawing, int],
    Iterator[tuple[str, list[int], bytes]],
]


class Sampler:
    """Continuous batching in one process: slots, a queue of prompts, one token a step."""

    def __init__(self, model: Any, prefix: Sequence[int], drawing: Drawing, places: int) -> None:
        model.set_attn_implementation(ATTENTION)
        kept = drawing.signals.within(model.config.vocab_size) if drawing.signals else None
        self.model, self.drawing = model, replace(drawing, signals=kept)
        self.places = places
        self.cache = SlotCache(model.config, drawing.slots, places, model.dtype, model.device)
        self.prefix = tuple(prefix)
        if prefix:
            with torch.inference_mode():
                self._prefill([0], [self.prefix])
                self.cache.share_prefix(len(prefix))

    @torch.inference_mode()
    def draw(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        """Yield each request with its answer, as they end.

        1. While `PREFILL_ROWS` slots are free and prompts wait, take prompts in.
        2. One step for all slots; the free ones compute too, and their result is dropped.
        3. Draw one token for each live slot; a slot that stops yields its answer and is free.
        """
        waiting = sorted(requests, key=lambda request: (-len(request.ids), request.key))
        self.live: dict[int, Live] = {}
        self.tokens_B = torch.zeros(self.drawing.slots, dtype=torch.long)
        self.columns_B = torch.full((self.drawing.slots,), self.cache.prefix, dtype=torch.long)
        free = list(range(self.drawing.slots))
        while waiting or self.live:
            # 1.
            while waiting and (len(free) >= PREFILL_ROWS or not self.live):
                taken = self._next_group(waiting, min(PREFILL_ROWS, len(free)))
                rows = [heapq.heappop(free) for _ in taken]
                yield from self._admit(rows, taken, free)
            if not self.live:
                continue
            # 2.
            hidden_BE = self._step()
            logits_BV = self.model.lm_head(hidden_BE)
            # 3.
            rows = sorted(self.live)
            yield from self._settle(rows, logits_BV[rows], hidden_BE[rows], free)

    def _next_group(self, waiting: list[Request], most: int) -> list[Request]:
        """Prompts of one width, so that a row's shape follows from its own prompt alone."""
        taken = [waiting.pop()]
        width = _width(taken[0].ids)
        while waiting and len(taken) < most and _width(waiting[-1].ids) == width:
            taken.append(waiting.pop())
        return taken

    def _admit(
        self, rows: list[int], taken: list[Request], free: list[int]
    ) -> Iterator[tuple[Request, Answer]]:
        hidden_PSE = self._prefill(rows, [request.ids for request in taken])
        ends = [len(request.ids) - 1 for request in taken]
        for number, (row, request) in enumerate(zip(rows, taken, strict=True)):
            self.live[row] = Live(request, self.drawing)
            self.columns_B[row] = self.cache.prefix + ends[number]
            self._read(self.live[row], hidden_PSE[number])
        # The head too always sees `PREFILL_ROWS` rows: one row alone takes another kernel.
        filled = ends + ends[:1] * (len(hidden_PSE) - len(ends))
        last_PE = hidden_PSE[torch.arange(len(filled)), filled]
        few = len(rows)
        yield from self._settle(rows, self.model.lm_head(last_PE)[:few], last_PE[:few], free)

    def _read(self, live: Live, hidden_SE: Tensor) -> None:
        """Keep the distributions inside a prompt, if they are wanted."""
        if live.inside:
            # The whole width, filler too: a shape that depends on the prompt's length alone.
            inside = slice(live.inside)
            live.read(self.model.lm_head(hidden_SE)[inside].cpu(), hidden_SE[inside].cpu())

    def _settle(
        self, rows: list[int], logits_LV: Tensor, hidden_LE: Tensor, free: list[int]
    ) -> Iterator[tuple[Request, Answer]]:
        """Draw a token for each of `rows`, and let go of the rows that end with it."""
        for part in exact(logits_LV.cpu(), hidden_LE.cpu()):
            yield from self._take(rows[part.where], part, free)

    def _take(
        self, rows: list[int], part: Exact, free: list[int]
    ) -> Iterator[tuple[Request, Answer]]:
        lives = [self.live[row] for row in rows]
        tokens = draw_next(lives, part, self.drawing)
        for row, live, token in zip(rows, lives, tokens, strict=True):
            self.tokens_B[row] = token
            self.columns_B[row] += 1
            if live.ended:
                del self.live[row]
                self.columns_B[row] = self.cache.prefix
                heapq.heappush(free, row)
                yield live.request, live.answer()

    def _step(self) -> Tensor:
        cache = self.cache
        used = int(self.columns_B.max()) + 1
        cache.span = min(self.places, _rounded(used))
        cache.prefilling = False
        columns_B = self.columns_B.to(self.model.device)
        cache.rows, cache.columns = torch.arange(self.drawing.slots), columns_B
        seen_BT = torch.arange(cache.span, device=columns_B.device) <= columns_B[:, None]
        hidden_BSE = self.model.model(
            input_ids=self.tokens_B[:, None].to(columns_B.device),
            attention_mask=_additive(seen_BT, self.model.dtype)[:, None, None, :],
            position_ids=columns_B[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        hidden_BE: Tensor = hidden_BSE[:, 0]
        return hidden_BE

    def _prefill(self, rows: list[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Take prompts into their slots; returns the hidden states, (PREFILL_ROWS, S, E).

        Those of `prompts` come first, and of each its own tokens; what follows is filler.
        """
        cache, start, place = self.cache, self.cache.prefix, self.model.device
        # Always the same number of rows, filled up with copies of the first, so that the
        # products have a shape that depends on the prompts' length alone.
        padded = [*prompts, *[prompts[0]] * (PREFILL_ROWS - len(prompts))]
        width = max(map(_width, prompts))
        ids = torch.zeros(len(padded), width, dtype=torch.long)
        for index, prompt in enumerate(padded):
            ids[index, : len(prompt)] = torch.tensor(prompt)
        cache.prefilling = True
        cache.rows = torch.tensor([*rows, *[rows[0]] * (len(padded) - len(rows))])
        seen_ST = torch.ones(width, start + width, dtype=torch.bool).tril(start)
        positions = torch.arange(start, start + width).expand(len(padded), width)
        hidden_PSE: Tensor = self.model.model(
            input_ids=ids.to(place),
            attention_mask=_additive(seen_ST.to(place), self.model.dtype)[None, None],
            position_ids=positions.to(place),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden_PSE


def places_for(prefix: Sequence[int], requests: Sequence[Request], drawing: Drawing) -> int:
    """Places of a slot that hold the longest prompt and answer."""
    longest = max(len(request.ids) for request in requests)
    return _rounded(len(prefix) + _rounded(longest, PREFILL_STEP) + drawing.max_new_tokens)


def _rounded(places: int, step: int = PLACES_STEP) -> int:
    return math.ceil(places / step) * step


def _width(prompt: Sequence[int]) -> int:
    """Places that a prompt takes while it is read."""
    return _rounded(len(prompt), PREFILL_STEP)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, -math.inf)


def sampler(
    model: Any, prefix: Sequence[int], requests: Sequence[Request], drawing: Drawing
) -> Sampler | Lockstep:
    """Who draws these answers in this process: slots, or the model's own way, see `packs`.

    Args:
        requests: all that may come, one at least.
    """
    places = places_for(prefix, requests, drawing) if packs(model) else 0
    return drawer(model, prefix, drawing, places)


def draw_all(
    model: Any,
    prefix: Sequence[int],
    requests: Sequence[Request],
    drawing: Drawing,
    journal: Journal,
    meter: Meter,
    pool: Pool | None = None,
) -> None:
    """Draw every request that the journal lacks, on all cores, into the journal.

    Args:
        model: in the type to compute in; its memory is shared with the workers.
        meter: counts tokens of finished answers.
        pool: who draws; the cores of this machine by default. Slots are as many as these would
            have, whoever draws, so that the answers are the same bits.

    Raises:
        StageError: a worker died; what was finished is in the journal.
    """
    done = [request for request in requests if request.key in journal.done]
    meter.skip(sum(len(journal.done[request.key].tokens) for request in done))
    left = [request for request in requests if request.key not in journal.done]
    if not left:
        return
    # No more slots than a worker can fill; by all requests, so that a resume keeps its shapes.
    share = max(PREFILL_ROWS, math.ceil(len(requests) / device.cores()))
    drawing = replace(drawing, slots=min(drawing.slots, share))
    # Sorted, so that each worker gets the same mix of lengths and all end together.
    left.sort(key=lambda request: (len(request.ids), request.key))
    if packs(model):
        units = [[request] for request in left]
        places = places_for(prefix, requests, drawing)
    else:  # a group is drawn as a whole or not at all
        missing = {request.key for request in left}
        every = groups(requests, drawing.slots)
        units = [one for one in every if any(request.key in missing for request in one)]
        places = 0
    for key, tokens, signals in (pool or here)(model, prefix, units, drawing, places):
        if key not in journal.done:
            journal.add(key, tokens, signals)
            meter.advance(len(tokens))


def here(
    model: Any, prefix: Sequence[int], units: list[list[Request]], drawing: Drawing, places: int
) -> Iterator[tuple[str, list[int], bytes]]:
    """Run one worker a core and yield what they finish: the pool of this machine."""
    workers = max(1, min(device.cores(), len(units)))
    share(model)
    shares = [
        (
            model,
            tuple(prefix),
            [one for unit in units[index::workers] for one in unit],
            drawing,
            places,
        )
        for index in range(workers)
    ]
    yield from spread(
        _work,
        shares,
        sum(map(len, units)),
        name="a sampling worker",
        hint="lower sample.batch, and run the same command again: finished answers are kept",
    )


def _work(
    model: Any,
    prefix: tuple[int, ...],
    requests: list[Request],
    drawing: Drawing,
    places: int,
    results: Any,
) -> None:
    """A worker: one thread, its share of the requests."""
    torch.set_num_threads(1)
    for found in drawn(drawer(model, prefix, drawing, places), requests):
        results.put(found)


def drawer(model: Any, prefix: Sequence[int], drawing: Drawing, places: int) -> Sampler | Lockstep:
    """Who draws in one process: slots of so many places, or the model's own way, see `packs`."""
    if packs(model):
        return Sampler(model, prefix, drawing, places)
    return Lockstep(model, prefix, drawing)


def drawn(
    by: Sampler | Lockstep, requests: Sequence[Request]
) -> Iterator[tuple[str, list[int], bytes]]:
    """Each request's key, tokens and packed signals, as they end."""
    kept = by.drawing.signals
    for request, answer in by.draw(requests):
        signals = kept.to_bytes(answer.signals) if kept and answer.signals else b""
        yield request.key, answer.tokens, signals
