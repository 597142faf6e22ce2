from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from overproof.core.artifact import Artifact
from overproof.core.errors import StageError
from overproof.release import engine
from overproof.release.engine import Engine
from overproof.release.header import Sampling, read_header

ODD = (
    "12345 67  890   1\n2\n\n3",
    "½ ² ٣٤ Ⅷ",
    "😀👩‍👩‍👧‍👦 🇩🇪!",
    "Café naïve Ünïcödé Größe",
    "I'll say they're John's, don't WE'VE 'tis",
    "a    b\t\tc \n  d   ",
    "    ",
    "\r\n\r\n x",
    "中文字符和日本語テスト한국어",
    "{'json': [1, 2.50, true]} https://a.b/c?d=e&f=%20",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|>  b",
    "\u00a0non\u2003breaking\u200bspace",
    "\x00\x07control",
)


@pytest.fixture(scope="module")
def f16(builds: dict[str, Path]) -> Engine:
    return Engine(builds["gguf-f16"])


@pytest.fixture(scope="module")
def tokenizer(tiny_student: Artifact) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_student.path / "tokenizer.json"))


@pytest.mark.parametrize("text", ODD)
def test_engine_cuts_odd_text_as_the_tokenizer_does(
    f16: Engine, tokenizer: Tokenizer, text: str
) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    assert f16.first_difference(text, tokens) is None


def test_a_difference_is_found_at_its_place(f16: Engine, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("My parcel is late.", add_special_tokens=False).ids
    other = tokenizer.encode("x", add_special_tokens=False).ids
    assert f16.first_difference("My parcel is late.", [*tokens[:-1], *other]) == len(tokens) - 1
    assert f16.first_difference("My parcel is late.", [*tokens, *other]) == len(tokens)
    assert f16.first_difference("My parcel is late. Very", tokens) == len(tokens)


@pytest.mark.parametrize("text", tiny_model.CONVERSATIONS)
def test_greedy_tokens_equal_those_of_transformers(
    f16: Engine, tiny_student: Artifact, tokenizer: Tokenizer, text: str
) -> None:
    prompt = tokenizer.encode(text, add_special_tokens=False).ids[:-12]
    model = tiny_model.load(tiny_student.path)
    ends = [tokenizer.token_to_id(token) for token in tiny_model.CONTROL]
    wanted = tiny_model.greedy(model, prompt, 16, ends)
    got = f16.generate(prompt, max_tokens=16, stop=False)
    # The engine keeps back an unfinished character at the end, `tokenizers` marks it.
    assert got.text == tokenizer.decode(wanted).rstrip("\ufffd")
    assert got.completion_tokens == 16
    assert got.prompt_tokens == len(prompt)


def test_most_likely_tokens_equal_those_of_transformers(
    f16: Engine, tiny_student: Artifact, tokenizer: Tokenizer
) -> None:
    prompt = tokenizer.encode("My parcel", add_special_tokens=False).ids
    wanted = tiny_model.greedy(tiny_model.load(tiny_student.path), prompt, 24, [])
    tokens = prompt + wanted
    places = range(len(prompt) - 1, len(tokens) - 1)
    assert f16.log_probs(tokens, places).argmax(-1).tolist() == wanted


def test_log_probs_are_those_of_the_model(
    f16: Engine, tiny_student: Artifact, tokenizer: Tokenizer
) -> None:
    tokens = tokenizer.encode(tiny_model.CONVERSATIONS[1], add_special_tokens=False).ids
    places = [0, 7, 8, len(tokens) - 2]
    got = f16.log_probs(tokens, places)
    with torch.inference_mode():
        logits = tiny_model.load(tiny_student.path)(torch.tensor([tokens])).logits[0, places]
    wanted = torch.log_softmax(logits, -1).numpy()
    assert got.shape == (4, tiny_model.TOKENS)
    np.testing.assert_allclose(np.exp(got.astype(np.float64)).sum(-1), 1.0, atol=1e-6)
    np.testing.assert_allclose(got, wanted, atol=0.1)  # fp16 weights; 25 nats of span
    assert (got.argmax(-1) == wanted.argmax(-1)).all()


def test_conversation_is_formed_as_transformers_forms_it(
    f16: Engine, tiny_student: Artifact
) -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " My café's bill is {{ 12 }}?\n"},
    ]
    prompt = AutoTokenizer.from_pretrained(tiny_student.path).apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    for messages in (turns, turns[1:]):
        prompt = AutoTokenizer.from_pretrained(tiny_student.path).apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        direct = f16.generate(prompt, max_tokens=12)
        chat = f16.chat(messages, max_tokens=12)
        assert chat.prompt_tokens == len(prompt)
        assert chat.text == direct.text


def test_pieces_of_a_stream_make_the_answer(f16: Engine) -> None:
    pieces: list[str] = []
    answer = f16.generate("My parcel", max_tokens=12, stream=pieces.append, stop=False)
    assert (
        "".join(pieces) == answer.text == f16.generate("My parcel", max_tokens=12, stop=False).text
    )
    assert len(pieces) > 1
    assert answer.completion_tokens == 12
    assert answer.decode_tokens_per_second > 0


def test_what_the_reader_of_a_stream_raises_stops_the_engine(f16: Engine) -> None:
    pieces: list[str] = []

    def full(piece: str) -> None:
        pieces.append(piece)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        f16.generate("My parcel", max_tokens=500, stream=full, stop=False)
    assert len(pieces) == 1
    assert f16.generate("My parcel", max_tokens=3, stop=False).completion_tokens == 3


def test_draws_repeat_with_their_seed(f16: Engine) -> None:
    def draw(seed: int) -> str:
        return f16.generate("My", max_tokens=20, sampling=Sampling(1.0, seed=seed), stop=False).text

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_settings_reach_the_sampler(f16: Engine) -> None:
    def draw(sampling: Sampling) -> str:
        return f16.generate("My", max_tokens=20, sampling=sampling, stop=False).text

    likely = draw(Sampling(0.0))
    assert draw(Sampling(9.0, seed=3)) != likely
    assert draw(Sampling(9.0, top_k=1, seed=3)) == likely
    assert draw(Sampling(9.0, top_p=1e-6, seed=3)) == likely


@pytest.mark.parametrize("streamed", [False, True])
def test_prompt_beyond_the_context_is_refused(builds: dict[str, Path], streamed: bool) -> None:
    with (
        Engine(builds["gguf-q8_0"], context=256) as small,
        pytest.raises(StageError, match="exceeds the available context") as caught,
    ):
        small.generate([5] * 300, max_tokens=1, stream=(lambda _: None) if streamed else None)
    assert caught.value.hint == "shorten the prompt"


def test_foreign_token_is_refused(f16: Engine) -> None:
    with pytest.raises(StageError, match="invalid tokens"):
        f16.log_probs([tiny_model.TOKENS + 5, 1], [1])


def test_damaged_file_is_refused(builds: dict[str, Path], tmp_path: Path, capfd) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(builds["gguf-q8_0"].read_bytes()[:100_000])
    for path in (cut, tmp_path / "none.gguf"):
        with pytest.raises(StageError):
            Engine(path)
    with pytest.raises(StageError, match="cannot be read as GGUF"):
        read_header(cut)
    assert capfd.readouterr() == ("", "")


def test_engine_is_silent(builds: dict[str, Path], capfd) -> None:
    with Engine(builds["gguf-q8_0"]) as loaded:
        loaded.generate("Hi", max_tokens=2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("policy", "load", "threads"),
    [("PASSIVE", 0.0, 1), ("", 0.0, 4), ("", 0.4, 4), ("", 2.1, 2), ("ACTIVE", 9.0, 1)],
)
def test_one_thread_for_each_idle_core(
    monkeypatch: pytest.MonkeyPatch, policy: str, load: float, threads: int
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setattr(engine.device, "cores", lambda: 4)
    monkeypatch.setattr(engine.os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert engine.default_threads() == threads
