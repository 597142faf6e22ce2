from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import torch

from overproof.core.errors import StageError
from overproof.core.sections import SampleConfig
from overproof.teacher import sample
from overproof.teacher.example import Example
from overproof.teacher.journal import Journal
from overproof.teacher.kept import TopK, exact
from overproof.teacher.live import choose
from overproof.teacher.request import Drawing, Request
from overproof.teacher.sample import Sampler, draw_all
from overproof.teacher.signals import shard_signals

HEAD = (11, 12, 13, 14)
STOP = 0


def drawing(**changes: object) -> Drawing:
    base = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
        "max_new_tokens": 12,
        "slots": 16,
        "stop_ids": (STOP,),
    }
    return Drawing(**(base | changes))


def requests(count: int, seed: int = 0, most: int = 60, signals: bool = False) -> list[Request]:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(2, tiny.TOKENS, rng.integers(1, most)).tolist() for _ in range(count)]
    return [Request.make(f"r{index}", ids, 7, signals=signals) for index, ids in enumerate(prompts)]


def draw(model, wanted: list[Request], head=HEAD, places: int = 128, **changes) -> dict:
    sampler = Sampler(model, head, drawing(**changes), places)
    return {request.key: answer.tokens for request, answer in sampler.draw(wanted)}


def said(journal: Journal) -> dict[str, list[int]]:
    return {key: entry.tokens for key, entry in journal.done.items()}


@pytest.fixture(scope="module")
def half():
    return tiny.model().to(torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_answer_does_not_depend_on_the_other_requests(dtype: torch.dtype) -> None:
    """Bit for bit, whatever else runs, in whatever order: what resuming rests on."""
    model, wanted = tiny.model().to(dtype), requests(40)
    whole = draw(model, wanted)
    assert sorted(whole) == sorted(request.key for request in wanted)
    assert draw(model, wanted[::-1]) == whole
    for part in (wanted[:1], wanted[5:8], wanted[1::3], wanted[20:]):
        assert draw(model, part) == {request.key: whole[request.key] for request in part}


def test_one_prompt_alone_goes_through_the_same_shapes() -> None:
    """A product of one row takes another kernel, which rounds in another order."""
    model = tiny.model(vocabulary=9_000, hidden_size=128)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _m, given, _out: seen.append(len(given[0])))
    draw(model, requests(1), max_new_tokens=3)
    assert seen == [sample.PREFILL_ROWS, 16, 16]


@pytest.mark.parametrize("head", [(), HEAD, tuple(range(2, 50))])
def test_greedy_answers_are_those_of_the_model_itself(head: tuple[int, ...]) -> None:
    model, wanted = tiny.model(), requests(20)
    got = draw(model, wanted, head, 160, top_k=1, max_new_tokens=6)
    plain = tiny.model()
    for request in wanted:
        tokens = [*head, *request.ids]
        for token in got[request.key]:
            assert token == int(tiny.alone(plain, tokens)[-1].argmax())
            tokens.append(token)


def test_an_answer_ends_at_a_stop_token_or_at_the_limit(half) -> None:
    answers = draw(half, requests(60), max_new_tokens=9, stop_ids=tuple(range(0, tiny.TOKENS, 7)))
    ended = [tokens for tokens in answers.values() if tokens[-1] % 7 == 0]
    assert ended
    assert len(ended) < len(answers)
    for tokens in answers.values():
        assert all(token % 7 for token in tokens[:-1])
        assert len(tokens) == 9 or tokens[-1] % 7 == 0
        assert 1 <= len(tokens) <= 9


def test_one_new_token_and_fewer_slots_than_a_prefill_takes(half) -> None:
    wanted = requests(11)
    whole = draw(half, wanted, max_new_tokens=1, slots=3)
    assert all(len(tokens) == 1 for tokens in whole.values())
    assert len(whole) == 11


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 50), (0.5, 1.0, 50), (1.7, 1.0, 8), (1.0, 0.6, 50)],
)
def test_draws_follow_the_softmax(temperature: float, top_p: float, top_k: int) -> None:
    """Chi-square of 20,000 first tokens against the distribution computed by the definition."""
    count = 20_000
    logits = torch.linspace(3, -3, 60)[
        torch.randperm(60, generator=torch.Generator().manual_seed(3))
    ]
    how = drawing(temperature=temperature, top_p=top_p, top_k=top_k)
    uniform = torch.from_numpy(np.random.default_rng(5).random(count)).float()
    parts = exact(logits.expand(count, -1), logits.expand(count, -1))
    tokens = torch.cat([choose(part, uniform[part.where], how) for part in parts])
    got = np.bincount(tokens.numpy(), minlength=60)
    # The definition: keep the top k, soften, keep the smallest set that reaches top_p.
    order = logits.argsort(descending=True)
    probs = (logits[order[:top_k]] / temperature).double().softmax(-1)
    nucleus = int((probs.cumsum(-1) < top_p - 1e-12).sum()) + 1
    wanted = np.zeros(60)
    wanted[order[: min(nucleus, top_k)]] = (probs[:nucleus] / probs[:nucleus].sum()) * count
    assert got[wanted == 0].sum() == 0
    used = wanted > 0
    chi = ((got[used] - wanted[used]) ** 2 / wanted[used]).sum()
    free = used.sum() - 1
    assert chi < free + 4 * np.sqrt(2 * free), (chi, free)  # about 1 in 10,000 by chance


def test_top_p_of_nothing_and_a_wide_top_k_are_still_draws() -> None:
    """top_p 0 leaves the most likely token alone; top_k beyond the vocabulary is all of it."""
    model, wanted = tiny.model(), requests(5)
    assert draw(model, wanted, top_p=0.0) == draw(model, wanted, top_k=1)
    assert draw(model, wanted, top_k=10_000) == draw(model, wanted, top_k=tiny.TOKENS)


@pytest.mark.parametrize("head", [(), HEAD])
@pytest.mark.parametrize("kept", [TopK(3), TopK(80, 6), TopK(10_000, 2), TopK(5, 3, prompts=True)])
def test_signals_kept_while_drawing_are_those_of_a_pass_over_the_answers(
    head: tuple[int, ...], kept: TopK
) -> None:
    """With fewer, with more than the draws look at (50), and with the whole vocabulary."""
    model, wanted = tiny.model(), requests(20, signals=True)
    sampler = Sampler(model, head, drawing(signals=kept), 128)
    answers = dict(sampler.draw(wanted))
    examples = [Example(r.key, r.ids, tuple(a.tokens)) for r, a in answers.items()]
    got = type(next(iter(answers.values())).signals).joined(
        [answer.signals for answer in answers.values()]
    )
    own = shard_signals(tiny.model(), head, examples, 128, kept)
    assert got.ids_NK.shape == own.ids_NK.shape == (len(own.tail_N), min(kept.top, tiny.TOKENS))
    close = {"rtol": 2e-3, "atol": 1e-4}
    torch.testing.assert_close(got.log_probs_NK, own.log_probs_NK, **close)
    torch.testing.assert_close(got.tail_N.exp(), own.tail_N.exp(), rtol=0, atol=1e-4)
    assert (got.ids_NK[:, 0] == own.ids_NK[:, 0]).float().mean() > 0.99  # ties apart
    assert (
        got.drawn_NR.shape
        == own.drawn_NR.shape
        == (len(own.tail_N), kept.within(tiny.TOKENS).drawn)
    )
    if kept.top < tiny.TOKENS:
        assert not (got.drawn_NR[:, :, None] == got.ids_NK[:, None, :]).any()


def test_what_is_kept_changes_no_answer() -> None:
    """In bf16 many logits are equal; which comes first depends on how many are looked at."""
    half, wanted = tiny.model().to(torch.bfloat16), requests(30, signals=True)
    plain = {r.key: a.tokens for r, a in Sampler(half, HEAD, drawing(), 128).draw(wanted)}
    for kept in (TopK(3), TopK(70, 5), TopK(4, 2, prompts=True)):
        drawn = Sampler(half, HEAD, drawing(signals=kept), 128).draw(wanted)
        assert {r.key: a.tokens for r, a in drawn} == plain


def test_signals_are_kept_where_they_are_wanted() -> None:
    wanted = [*requests(5, signals=True), *requests(8)[5:]]
    answers = dict(Sampler(tiny.model(), HEAD, drawing(signals=TopK(4, 2)), 128).draw(wanted))
    for request, answer in answers.items():
        assert (answer.signals is not None) == request.signals
        if answer.signals is not None:
            assert answer.signals.ids_NK.shape == (len(answer.tokens), 4)
            assert answer.signals.drawn_NR.shape == (len(answer.tokens), 2)
    plain = dict(Sampler(tiny.model(), HEAD, drawing(), 128).draw(requests(8)))
    assert {r.key: a.tokens for r, a in answers.items()} == {
        r.key: a.tokens for r, a in plain.items()
    }


def test_a_request_draws_by_its_own_seed() -> None:
    one, other = Request.make("a", [1], 0), Request.make("b", [1], 0)
    assert one == Request.make("a", (1,), 0)
    assert len({one.seed, other.seed, Request.make("a", [1], 1).seed}) == 3


def test_the_recipe_gives_the_drawing() -> None:
    config = SampleConfig(prompts=1, temperature=0.3, top_p=0.9, top_k=5, max_new_tokens=4, batch=2)
    assert Drawing.of(config, (3,), 8) == Drawing(0.3, 0.9, 5, 4, 2, (3,), 8)


def test_what_the_journal_holds_is_not_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def spread(_model, _prefix, units, _drawing, _places):
        left = [request for unit in units for request in unit]
        asked.extend(request.key for request in left)
        yield from ((request.key, [7], b"") for request in left)

    monkeypatch.setattr(sample, "here", spread)
    journal = Journal(tmp_path / "journal")
    first, second, third = (request.key for request in requests(3))
    journal.add(second, [5])
    progress = tiny.meter()
    draw_all(tiny.model(), HEAD, requests(3), drawing(), journal, progress)
    answers = {first: [7], second: [5], third: [7]}
    assert said(journal) == answers
    assert sorted(asked) == [first, third]
    asked.clear()
    draw_all(tiny.model(), HEAD, requests(3), drawing(), journal, progress)
    assert said(journal) == answers
    journal.close()
    assert not asked


def test_a_model_that_does_not_pack_draws_whole_groups_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def spread(_model, _prefix, units, _drawing, _places):
        asked.extend([request.key for request in unit] for unit in units)
        yield from ((request.key, [7], b"") for unit in units for request in unit)

    monkeypatch.setattr(sample, "here", spread)
    monkeypatch.setattr(sample, "packs", lambda _model: False)
    wanted = [Request.make(f"r{at}", [5] * (1 + at // 4), 7) for at in range(8)]
    with closing(Journal(tmp_path / "journal")) as journal:
        journal.add(wanted[0].key, [5])
        for request in wanted[4:]:
            journal.add(request.key, [6])
        draw_all(None, HEAD, wanted, drawing(), journal, tiny.meter())
        assert asked == [[f"r{at}/0" for at in range(4)]]
        assert said(journal) == {
            one.key: [5] if at == 0 else [7] if at < 4 else [6] for at, one in enumerate(wanted)
        }


RUN = """
import sys
sys.path.insert(0, {helper!r})
import tiny_teacher as tiny
from pathlib import Path
from test_sample import HEAD, drawing, requests
from overproof.teacher.kept import TopK
from overproof.teacher.journal import Journal
from overproof.teacher.sample import draw_all
import torch

if __name__ == "__main__":
    model = tiny.model(layers=12).to(torch.bfloat16)
    journal = Journal(Path(sys.argv[1]) / "journal")
    how = drawing(max_new_tokens=24, slots=8, signals=TopK(5, 3, prompts=True))
    draw_all(model, HEAD, requests(300, signals=True), how, journal, tiny.meter())
    journal.close()
    Path(sys.argv[1], "finished").touch()
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    script = folder / "run.py"
    script.write_text(RUN.format(helper=str(Path(__file__).parent)))
    source = str(Path(sample.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": source}
    return subprocess.Popen([sys.executable, str(script), str(folder)], env=env)


def test_killed_and_resumed_answers_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole).wait(120) == 0
    process, journal = start(cut), cut / "journal"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size > 200):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = said_and_kept(journal)
    assert 0 < len(before) < 300
    assert not (cut / "finished").exists()
    size = journal.stat().st_size
    assert start(cut).wait(120) == 0
    after = said_and_kept(journal)
    assert list(after.items())[: len(before)] == list(before.items())
    assert journal.stat().st_size > size
    assert len(after) == 300
    assert after == said_and_kept(whole / "journal")
    # Nothing was drawn twice: the same answers in another order fill the same bytes.
    assert journal.stat().st_size == (whole / "journal").stat().st_size


def said_and_kept(path: Path) -> dict[str, tuple[list[int], bytes]]:
    """Tokens and signals of every answer, in the order of the journal."""
    with contextlib.closing(Journal(path)) as journal:
        return {key: (entry.tokens, journal.signals(key)) for key, entry in journal.done.items()}


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    broken = tiny.model()
    del broken.lm_head
    journal = Journal(tmp_path / "journal")
    with pytest.raises(StageError, match="worker"):
        draw_all(broken, HEAD, requests(2), drawing(), journal, tiny.meter())
    journal.close()


def test_a_worker_has_no_more_slots_than_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when most answers are there already: a resumed run keeps the shapes of the first."""
    seen: list[int] = []

    def spread(_model, _prefix, units, drawing, _places):
        seen.append(drawing.slots)
        yield from ((request.key, [7], b"") for unit in units[:25] for request in unit)

    monkeypatch.setattr(sample, "here", spread)
    monkeypatch.setattr(sample.device, "cores", lambda: 2)
    with contextlib.closing(Journal(tmp_path / "journal")) as journal:
        draw_all(tiny.model(), HEAD, requests(40), drawing(slots=500), journal, tiny.meter())
        draw_all(tiny.model(), HEAD, requests(40), drawing(slots=500), journal, tiny.meter())
        draw_all(tiny.model(), HEAD, requests(41), drawing(slots=6), journal, tiny.meter())
    assert seen == [20, 20, 6]
