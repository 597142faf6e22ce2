"""A remote teacher's likeliest tokens as signals: real ones of llama.cpp, and made-up faults."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import torch
from remote_server import BUILTIN, MODEL, Proxy, recipe_text, serving

from overproof import remote_preflight
from overproof.core.artifact import build
from overproof.core.config import load_recipe
from overproof.core.errors import StageError
from overproof.core.recipe import Recipe
from overproof.data import certify
from overproof.release import text_quality
from overproof.teacher import answers, local, signals
from overproof.teacher.cache import SignalCache
from overproof.teacher.example import Example
from overproof.teacher.kept import TopK
from overproof.teacher.origins import Loader
from overproof.teacher.remote import stage
from overproof.teacher.remote.asking import ask_all
from overproof.teacher.remote.ledger import Ledger
from overproof.teacher.remote.reply import Reply, Tokens
from overproof.teacher.remote.tokens import Hearing, has_distribution
from overproof.teacher.signals import shard_signals

KIND = "signals={kind: top-k, top_k: 12, tail_draws: 0, prompts: false}"
PROMPT = "Say hello in French, German and Japanese."


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with serving() as address:
        made = Proxy(address)
        yield made
        made.close()


@pytest.fixture(scope="module")
def base() -> local.Teacher:
    return local.load(BUILTIN)


def recipe(folder: Path, url: str, *more: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(recipe_text(url, Path("a"), Path("b")))
    return load_recipe(path, [KIND, "sample.max_new_tokens=24", *more])


def answer(folder: Path, asked: Recipe) -> Reply:
    question = stage.question(PROMPT, stage.Request.make("a", (), 0), asked)
    with Ledger(folder / "ledger") as ledger:
        ask_all([question], MODEL, stage.endpoint_of(asked), ledger, tiny.meter())
        return ledger.reply(question.key)


@pytest.mark.slow
def test_they_are_the_distributions_of_the_same_model_run_here(
    proxy: Proxy, base: local.Teacher, tmp_path: Path
) -> None:
    asked = recipe(tmp_path, proxy.url)
    reply = answer(tmp_path, asked)
    keep = stage.kept(asked)
    heard = Hearing(base, keep).heard(reply)
    assert heard.signals is not None
    assert len(heard.signals) == len(heard.tokens)
    assert base.text(heard.tokens).strip() == reply.text.strip()
    prompt = tuple(base.prompt_ids(PROMPT, asked.teacher.system))
    example = Example("a", prompt, tuple(heard.tokens))
    here = shard_signals(base.model, (), [example], 256, TopK(12))
    given = has_distribution(heard.signals)
    assert int(given.sum()) >= len(heard.tokens) // 2
    theirs, ours = heard.signals.spread().rows(given), here.spread(None).rows(given)
    # llama.cpp multiplies in 8 bits what transformers multiplies in fp32.
    assert float((theirs.probs_NK[:, 0] - ours.probs_NK[:, 0]).abs().mean()) < 0.05
    assert float((theirs.ids_NK[:, 0] == ours.ids_NK[:, 0]).float().mean()) > 0.8
    assert float((theirs.tail_N - ours.tail_N).abs().mean()) < 0.05
    mass = theirs.probs_NK.sum(-1) + theirs.tail_N
    assert torch.allclose(mass, torch.ones(len(mass)), atol=1e-3)
    # And they come back from the bytes of a journal as they went in.
    assert keep is not None
    again = keep.from_bytes(keep.to_bytes(heard.signals), len(heard.tokens))
    assert all(map(torch.equal, again.arrays, heard.signals.arrays))


@pytest.mark.slow
def test_they_fill_the_cache_of_training_and_that_of_evaluation(
    proxy: Proxy, base: local.Teacher, tmp_path: Path
) -> None:
    train, heldout = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    train.write_text('{"prompt": "Where is my parcel?"}\n{"prompt": "Refund it."}\n')
    heldout.write_text('{"prompt": "Say hello in Japanese."}\n')
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(proxy.url, train, heldout))
    asked, store = load_recipe(path, [KIND, "sample.max_new_tokens=12"]), tmp_path / "stages"
    sets = [
        certify.certify(file, asked.data, store=store, name=file.stem, exclude=None)
        for file in (train, heldout)
    ]
    terms = build(store, "terms", inputs={}, config={}, make=lambda _: {})
    made = stage.sample(lambda: base, *sets, {"base": base.resource}, terms, asked, store)

    def loaded(_: int) -> local.Teacher:
        raise AssertionError("the signals came with the answers")

    cached = signals.cache(Loader(loaded), made, asked, {"teacher": stage.identify(asked)}, store)
    found = answers.read(made)
    (shard,) = SignalCache(cached.path, answers.made_of(made, asked))
    assert len(shard.ids_NK) == sum(len(one.answer) for one in found.train)
    assert shard.ids_NK.shape[1] == 12
    said = text_quality.heldout(made, found, base, asked)
    assert len(said) == 1
    assert said[0].likely is not None
    assert said[0].given is not None
    assert len(said[0].likely.ids_NK) == len(said[0].given) == len(said[0].example.answer)
    assert said[0].bytes == len(base.text(said[0].example.answer).encode())
    drawn = torch.tensor(said[0].example.answer)[torch.from_numpy(said[0].given)]
    likely = said[0].likely.rows(torch.from_numpy(said[0].given))
    # At top-p 0.9 every token that was drawn is among the likeliest twelve, or near it.
    assert float((likely.ids_NK == drawn[:, None]).any(-1).float().mean()) > 0.8


@pytest.mark.slow
def test_a_look_at_the_endpoint(proxy: Proxy, base: local.Teacher, tmp_path: Path) -> None:
    good = remote_preflight.run(recipe(tmp_path, proxy.url), PROMPT, base)
    assert [check.name for check in good] == [
        "key", "reachable", "model", "answer", "answered", "usage", "logprobs",
    ]  # fmt: skip
    assert {check.state for check in good} == {"ok"}, good
    other = tiny.teacher()
    checks = remote_preflight.run(recipe(tmp_path, proxy.url), PROMPT, other)
    wrong = {check.name: check for check in checks if check.state == "missing"}
    assert wrong.keys() == {"logprobs"}
    assert "are not those of student.base" in wrong["logprobs"].detail
    unlisted = remote_preflight.run(
        recipe(tmp_path, proxy.url, "teacher.model=other"), PROMPT, base
    )
    states = {check.name: check.state for check in unlisted}
    assert states["model"] == "warning"
    assert states["answered"] == "missing"


def test_a_look_where_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    nowhere = recipe(tmp_path, "http://127.0.0.1:9/v1")
    checks = remote_preflight.run(nowhere, PROMPT, tiny.teacher())
    assert [(check.name, check.state) for check in checks] == [
        ("key", "ok"),
        ("reachable", "missing"),
    ]
    keyed = recipe(tmp_path, "http://127.0.0.1:9/v1", "teacher.endpoint.key=NO_SUCH_KEY")
    (check,) = remote_preflight.run(keyed, PROMPT, tiny.teacher())
    assert (check.name, check.state) == ("key", "missing")
    assert "NO_SUCH_KEY" in check.detail


def hexed(text: str) -> str:
    return text.encode().hex()


def reply(*tokens: str, finish: str = "stop", top: dict[str, float] | None = None) -> Reply:
    """An answer of tokens, the same likeliest ones at each."""
    likely = [(hexed(token), log_prob) for token, log_prob in (top or {"a": -0.5}).items()]
    places = [(hexed(token), likely) for token in tokens]
    return Reply("".join(tokens), finish, "m", None, Tokens(1, len(tokens)), 0, places)


def hearing(top: int = 3) -> Hearing:
    return Hearing(tiny.teacher(), TopK(top))


def test_a_row_holds_the_likeliest_and_the_tail() -> None:
    heard = hearing().heard(reply("p", top={"b": -1.0, "p": -0.7}))
    assert heard.signals is not None
    ids = tiny.tokenizer().get_vocab()
    assert heard.tokens == [ids["p"], 0]
    assert heard.signals.ids_NK[0, :2].tolist() == [ids["p"], ids["b"]]
    tail = 1 - math.exp(-1.0) - math.exp(-0.7)
    assert math.exp(float(heard.signals.tail_N[0])) == pytest.approx(tail, rel=1e-4)
    # The end has no distribution: the text alone says that it comes.
    assert has_distribution(heard.signals).tolist() == [True, False]
    spread = heard.signals.spread()
    assert spread.ids_NK[1, 0] == 0
    assert spread.probs_NK[1].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)


def test_the_end_that_has_no_text_is_the_end() -> None:
    found = reply("p")
    assert found.places is not None
    found.places.append(("", [("", -0.1), (hexed("p"), -3.0)]))
    heard = hearing().heard(found)
    assert heard.signals is not None
    assert len(heard.tokens) == 2
    assert heard.signals.ids_NK[1, 0] == 0
    assert has_distribution(heard.signals).tolist() == [False, True]


def test_an_answer_that_was_cut_off_has_no_end() -> None:
    assert hearing().heard(reply("p", "a", finish="length")).tokens[-1] != 0


def test_a_character_of_several_tokens_is_learned_as_text() -> None:
    heard = hearing().heard(reply("p", "é", "a", finish="length", top={"a": -0.5, "b": -2.0}))
    assert heard.signals is not None
    assert len(heard.tokens) == 4
    assert has_distribution(heard.signals).tolist() == [True, False, False, True]
    assert tiny.tokenizer().decode(heard.tokens) == "péa"


@pytest.mark.parametrize(
    "strange", [reply("zebra"), reply("p", top={"zebra": -0.5}), reply("p", "zé")]
)
def test_tokens_that_are_not_the_bases_are_refused(strange: Reply) -> None:
    with pytest.raises(StageError, match="are not those of student") as caught:
        hearing().heard(strange)
    assert "take signals.kind `text`" in str(caught.value.hint)


def test_log_probabilities_of_another_text_are_refused() -> None:
    found = reply("p")
    assert found.places is not None
    other = Reply("something else", "stop", "m", None, None, 0, found.places)
    with pytest.raises(StageError, match="not those of its answer"):
        hearing().heard(other)


def test_text_that_spells_a_control_token_stays_text() -> None:
    tokens = Hearing(tiny.teacher(), None).heard(reply(tiny.CONTROL[1], finish="stop")).tokens
    assert tokens[-1] == 0
    assert not {0, 1} & set(tokens[:-1])
    assert np.array(tokens).size > 2
