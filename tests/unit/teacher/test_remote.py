"""A teacher behind an endpoint: real answers over HTTP, with faults put between."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_teacher as tiny
from remote_server import MODEL, Fault, Proxy, recipe_text, serving

from overproof.core.artifact import Artifact, Resource, build
from overproof.core.config import load_recipe
from overproof.core.errors import StageError, UsageError
from overproof.core.recipe import Recipe
from overproof.data import certify
from overproof.teacher import answers, local
from overproof.teacher.remote import stage
from overproof.teacher.remote.asking import ask_all
from overproof.teacher.remote.ledger import Ledger
from overproof.teacher.remote.purse import BudgetError
from overproof.teacher.remote.reply import Tokens

KEY = "sk-test-0123456789abcdef"
PROMPTS = ("Where is my parcel?", "Refund it.", "Hello?", "Is it late?", "Why?", "Call me.")


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with serving() as address:
        proxy = Proxy(address)
        yield proxy
        proxy.close()


@pytest.fixture
def proxy(server: Proxy) -> Proxy:
    server.reset()
    return server


def write(folder: Path, url: str, *more: str) -> Recipe:
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    train.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    heldout.write_text("".join(json.dumps({"prompt": f"{t} Now"}) + "\n" for t in PROMPTS[:3]))
    path = folder / "recipe.yaml"
    path.write_text(recipe_text(url, train, heldout))
    return load_recipe(path, more)


def questions(recipe: Recipe, count: int = 4) -> list[stage.Question]:
    return [
        stage.question(prompt, stage.Request.make(str(number), (), recipe.seed), recipe)
        for number, prompt in enumerate(PROMPTS[:count])
    ]


def run(folder: Path, recipe: Recipe, count: int = 4) -> Ledger:
    """Ask; the ledger as the next run finds it."""
    endpoint = stage.endpoint_of(recipe)
    path = folder / "ledger.jsonl"
    with Ledger(path, endpoint.price.currency if endpoint.price else None) as ledger:
        ask_all(questions(recipe, count), recipe.teacher.model, endpoint, ledger, tiny.meter(count))
    return Ledger(path, endpoint.price.currency if endpoint.price else None)


def test_every_answer_is_kept_and_none_is_asked_for_again(proxy: Proxy, tmp_path: Path) -> None:
    recipe = write(tmp_path, proxy.url)
    with run(tmp_path, recipe) as ledger:
        replies = [ledger.reply(one.key) for one in questions(recipe)]
        spent = ledger.spent
    assert [one["messages"][-1]["content"] for one in sorted_by(proxy.asked)] == sorted(PROMPTS[:4])
    assert all(body["seed"] < 2**31 and body["max_tokens"] == 6 for body in proxy.asked)
    assert len({body["seed"] for body in proxy.asked}) == 4
    assert all(reply.text and reply.model == MODEL and reply.used for reply in replies)
    assert spent.prompt == sum(reply.used.prompt for reply in replies if reply.used)
    assert 4 <= spent.answer <= 24
    assert proxy.most <= 2
    proxy.reset()
    run(tmp_path, recipe).close()
    assert not proxy.asked


def sorted_by(bodies: list[Any]) -> list[Any]:
    return sorted(bodies, key=lambda body: body["messages"][-1]["content"])


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429, headers={"Retry-After": "1"}),
        Fault(status=500),
        Fault(status=503, headers={"Retry-After": "Thu, 01 Jan 2026 00:00:00 GMT"}),
        Fault(status=408),
        Fault(cut=True),
        Fault(seconds=2.5),
        Fault(drop="choices"),
    ],
    ids=["429", "500", "503-with-a-date", "408", "cut", "slow", "no-choice"],
)
def test_a_passing_fault_is_tried_again(proxy: Proxy, tmp_path: Path, fault: Fault) -> None:
    slow = ["teacher.endpoint.timeout_seconds=2.0"] if fault.seconds else []
    recipe = write(tmp_path, proxy.url, *slow)
    proxy.faults = [fault]
    began = dt.datetime.now(dt.UTC)
    with run(tmp_path, recipe, 1) as ledger:
        reply = ledger.reply(questions(recipe)[0].key)
        took = (dt.datetime.now(dt.UTC) - began).total_seconds()
        assert reply.text
        again = ledger.spent.guessed if fault.seconds else 1  # on a busy machine more than once
        assert again
        assert len(proxy.asked) == 1 + again
        assert proxy.asked[0] == proxy.asked[-1]
        if fault.headers.get("Retry-After") == "1":
            assert took >= 1.0
        # What may have been billed counts at its worst; what a server refused does not.
        billed = fault.cut or fault.seconds or fault.drop
        assert ledger.spent.guessed == again * bool(billed)
        worst = questions(recipe)[0].worst
        assert reply.used is not None
        assert ledger.spent.tokens == reply.used.total + ledger.spent.guessed * worst.total


def test_a_fault_that_stays_ends_the_stage_and_what_came_is_kept(
    proxy: Proxy, tmp_path: Path
) -> None:
    recipe = write(tmp_path, proxy.url, "teacher.endpoint.attempts=2")
    proxy.faults, proxy.always = [Fault()], Fault(status=502, message="bad gateway")
    with pytest.raises(StageError, match="gives no answer") as caught:
        run(tmp_path, recipe)
    text = caught.value.render()
    assert "HTTP 502: " in text
    assert "bad gateway" in text
    assert "attempt 2 of 2" in text
    assert "kept: 1 answers" in text
    proxy.reset()
    run(tmp_path, recipe).close()
    assert len(proxy.asked) == 3


@pytest.mark.parametrize(("status", "hint"), [(401, "the key"), (404, "url"), (400, "field")])
def test_another_refusal_ends_it_at_once(
    proxy: Proxy, tmp_path: Path, status: int, hint: str
) -> None:
    recipe = write(tmp_path, proxy.url)
    proxy.always = Fault(status=status, message="no such thing")
    with pytest.raises(StageError) as caught:
        run(tmp_path, recipe)
    assert len(proxy.asked) == 1
    assert f"HTTP {status}: " in caught.value.render()
    assert hint in str(caught.value.hint)


def test_a_server_that_asks_for_too_long_a_wait_ends_it(proxy: Proxy, tmp_path: Path) -> None:
    recipe = write(tmp_path, proxy.url)
    proxy.always = Fault(status=429, headers={"Retry-After": "3600"})
    with pytest.raises(StageError) as caught:
        run(tmp_path, recipe)
    assert "it asks to wait 3,600 s" in caught.value.render()
    assert len(proxy.asked) == 1


def test_nothing_listens(tmp_path: Path) -> None:
    recipe = write(tmp_path, "http://127.0.0.1:9/v1", "teacher.endpoint.attempts=1")
    with pytest.raises(StageError, match="gives no answer"):
        run(tmp_path, recipe)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        assert ledger.spent.tokens == 0


def test_another_model_than_asked_for_is_refused_unless_it_is_an_alias(
    proxy: Proxy, tmp_path: Path
) -> None:
    recipe = write(tmp_path, proxy.url)
    proxy.always = Fault(model="smollm2-2026-01-01")
    with pytest.raises(StageError, match="another model answered") as caught:
        run(tmp_path, recipe)
    assert "'smollm2-2026-01-01'" in caught.value.render()
    assert f"'{MODEL}'" in caught.value.render()
    assert len(proxy.asked) == 1
    alias = write(tmp_path, proxy.url, "teacher.endpoint.aliases=[smollm2-2026-01-01]")
    with run(tmp_path, alias) as ledger:
        assert {ledger.reply(one.key).model for one in questions(alias)} == {"smollm2-2026-01-01"}


def test_a_model_that_changes_in_mid_run_stops_it(proxy: Proxy, tmp_path: Path) -> None:
    recipe = write(tmp_path, proxy.url, "teacher.endpoint.aliases=[newer]")
    proxy.faults, proxy.always = [Fault(), Fault()], Fault(model="newer")
    with pytest.raises(StageError, match="changed its model in mid-run") as caught:
        run(tmp_path, recipe)
    assert "'newer'" in caught.value.render()
    assert f"'{MODEL}'" in caught.value.render()
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        kept = len(ledger)
        assert kept == 2
        assert ledger.spent.guessed == 0
    # It is noticed by a second run too, which asks for one answer only.
    proxy.reset()
    proxy.always = Fault(model="newer")
    with pytest.raises(StageError, match="changed its model"):
        run(tmp_path, recipe)
    assert len(proxy.asked) == 1
    proxy.reset()
    run(tmp_path, recipe).close()
    assert len(proxy.asked) == 2


PRICE = "teacher.endpoint.price={input: 1000000, output: 2000000, currency: EUR}"


def worst_money(recipe: Recipe) -> float:
    price = stage.endpoint_of(recipe).price
    assert price is not None
    return max(price.of(*one.worst) for one in questions(recipe))


def test_the_budget_stops_it_before_it_is_exceeded_and_going_on_is_free_of_what_is_kept(
    proxy: Proxy, tmp_path: Path
) -> None:
    plain = write(tmp_path, proxy.url, PRICE)
    limit = worst_money(plain) * 1.5
    recipe = write(tmp_path, proxy.url, PRICE, f"teacher.endpoint.budget={{money: {limit}}}")
    with pytest.raises(BudgetError, match="would exceed the budget") as caught:
        run(tmp_path, recipe)
    text = caught.value.render()
    assert "EUR" in text
    assert "spent: " in text
    assert "raise teacher.endpoint.budget" in text
    with Ledger(tmp_path / "ledger.jsonl", "EUR") as ledger:
        kept, spent = len(ledger), ledger.spent.money
    assert 1 <= kept < 4
    assert f"kept: {kept} answers" in text
    assert 0 < spent <= limit
    asked = len(proxy.asked)
    more = write(tmp_path, proxy.url, PRICE, "teacher.endpoint.budget={money: 100000}")
    with run(tmp_path, more) as ledger:
        assert len(ledger) == 4
        assert ledger.spent.money > spent
    assert len(proxy.asked) == 4
    assert asked == kept


def test_a_budget_of_tokens_too(proxy: Proxy, tmp_path: Path) -> None:
    recipe = write(tmp_path, proxy.url)
    limit = max(one.worst.total for one in questions(recipe)) - 1
    short = write(tmp_path, proxy.url, f"teacher.endpoint.budget={{tokens: {limit}}}")
    with pytest.raises(BudgetError, match="would exceed") as caught:
        run(tmp_path, short)
    assert "it may take tokens: " in caught.value.render()
    assert not proxy.asked


def test_an_answer_without_usage_counts_at_its_worst(proxy: Proxy, tmp_path: Path) -> None:
    recipe = write(tmp_path, proxy.url, PRICE)
    proxy.always = Fault(drop="usage")
    with run(tmp_path, recipe, 2) as ledger:
        assert ledger.spent.guessed == 2
        assert ledger.spent.tokens == sum(one.worst.total for one in questions(recipe, 2))
        assert ledger.reply(questions(recipe)[0].key).used is None


def test_the_key_is_sent_and_never_written(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ["teacher.endpoint.key=TEACHER_KEY", "teacher.endpoint.attempts=1"]
    recipe = write(tmp_path, proxy.url, *named)
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(UsageError, match="TEACHER_KEY is not set"):
        run(tmp_path, recipe)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-vendor")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-another-vendor")
    run(tmp_path, recipe, 1).close()
    sent = {name.lower(): value for name, value in proxy.seen[0]["headers"].items()}
    assert sent["authorization"] == f"Bearer {KEY}"
    assert "another-vendor" not in json.dumps(sent)
    proxy.always = Fault(status=401, message=f"Incorrect API key provided: {KEY}")
    with pytest.raises(StageError) as caught:
        run(tmp_path, recipe)
    assert KEY not in caught.value.render()
    assert "[key]" in caught.value.render()
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY not in file.read_text(), file


def certified(folder: Path, recipe: Recipe) -> tuple[Artifact, Artifact, Artifact]:
    store = folder / "stages"
    heldout = certify.certify(
        Path(recipe.data.heldout), recipe.data, store=store, name="heldout", exclude=None
    )
    train = certify.certify(
        Path(recipe.data.train), recipe.data, store=store, name="train", exclude=heldout
    )
    terms = build(store, "terms", inputs={}, config={}, make=lambda _: {"verdict": "allow"})
    return train, heldout, terms


def sampled(folder: Path, recipe: Recipe, base: local.Teacher) -> Artifact:
    train, heldout, terms = certified(folder, recipe)
    resource = Resource("base", "tiny", "file:tiny", "0" * 64)
    base_of = {"base": resource}
    return stage.sample(lambda: base, train, heldout, base_of, terms, recipe, folder / "stages")


@pytest.fixture(scope="module")
def asked(server: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with the answers to all prompts: asked once."""
    server.reset()
    folder = tmp_path_factory.mktemp("asked")
    sampled(folder, write(folder, server.url), tiny.teacher())
    assert len(server.asked) == 9
    return folder / "stages" / stage.LEDGER


def paid(folder: Path, ledger: Path) -> None:
    """The ledger of an earlier run in a folder of its own."""
    place = folder / "stages" / stage.LEDGER
    place.parent.mkdir(parents=True)
    shutil.copyfile(ledger, place)


def test_the_stage_holds_the_text_and_who_gave_it(
    asked: Path, proxy: Proxy, tmp_path: Path
) -> None:
    paid(tmp_path, asked)
    recipe, base = write(tmp_path, proxy.url), tiny.teacher()
    made = sampled(tmp_path, recipe, base)
    assert not proxy.asked
    found = answers.read(made)
    with Ledger(tmp_path / "stages" / stage.LEDGER) as ledger:
        texts = {ledger.reply(key).text for key in ledger._places}
    assert len(found.heldout) == 3
    for one in (*found.train, *found.heldout):
        assert base.text(one.answer) in texts
    rows = [json.loads(line) for line in made.file(stage.REPLIES).read_text().splitlines()]
    assert len(rows) == 9
    assert {row["model"] for row in rows} == {MODEL}
    facts = made.facts["remote"]
    assert facts["answered"] == {MODEL: 9}
    assert sum(facts["fingerprints"].values()) == 9
    assert facts["weights"] == "unknown"
    assert facts["origin"] == proxy.url.removesuffix("/v1")
    assert facts["first"] <= facts["last"]
    assert facts["prompt_tokens"] > 0
    # Made anew, from the ledger alone: the same bytes, and nothing is asked.
    before = made.sha256
    made.file(stage.REPLIES).unlink()
    assert sampled(tmp_path, recipe, base).sha256 == before
    assert not proxy.asked


def test_answers_that_do_not_fit_are_told_and_not_asked_for_again(
    asked: Path, proxy: Proxy, tmp_path: Path
) -> None:
    paid(tmp_path, asked)
    recipe, base = write(tmp_path, proxy.url), tiny.teacher()
    longest = max(len(base.prompt_ids(text, recipe.teacher.system)) for text in PROMPTS)
    room = longest + recipe.sample.max_new_tokens  # in the service's tokens it would be enough
    recipe = write(tmp_path, proxy.url, f"train.sequence_length={room}")
    with pytest.raises(UsageError, match="too short for the longest prompt and answer") as caught:
        sampled(tmp_path, recipe, tiny.teacher())
    assert "nothing is asked anew" in str(caught.value.hint)
    sampled(tmp_path, write(tmp_path, proxy.url), tiny.teacher())
    assert not proxy.asked


def test_the_worst_is_never_less_than_what_was_used(
    asked: Path, proxy: Proxy, tmp_path: Path
) -> None:
    paid(tmp_path, asked)
    recipe = write(tmp_path, proxy.url)
    requests, worst = stage.worst_of([PROMPTS, [f"{t} Now" for t in PROMPTS[:3]]], recipe)
    made = sampled(tmp_path, recipe, tiny.teacher())
    facts = made.facts["remote"]
    assert requests == facts["answers"] == 9
    assert facts["prompt_tokens"] <= worst.prompt
    assert facts["answer_tokens"] <= worst.answer
    assert worst == sum_of(recipe)


def test_shots_are_sent_as_turns_and_counted(tmp_path: Path) -> None:
    plain = write(tmp_path, "http://localhost:8000/v1")
    shown = write(
        tmp_path, "http://localhost:8000/v1", 'teacher.shots=[{"prompt": "One?", "answer": "Two."}]'
    )
    turns = stage.body("Three?", 1, shown)["messages"]
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("system", str(shown.teacher.system)),
        ("user", "One?"),
        ("assistant", "Two."),
        ("user", "Three?"),
    ]
    first, second = (
        stage.question("Three?", stage.Request.make("a", (), 0), one) for one in (plain, shown)
    )
    assert first.key != second.key
    assert second.worst.prompt == first.worst.prompt + len("One?Two.")


def sum_of(recipe: Recipe) -> Tokens:
    every = [*PROMPTS, *(f"{text} Now" for text in PROMPTS[:3])]
    found = [stage.question(t, stage.Request.make("a", (), 0), recipe).worst for t in every]
    return Tokens(sum(one.prompt for one in found), sum(one.answer for one in found))
