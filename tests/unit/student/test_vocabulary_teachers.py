"""Students of teachers whose tokenizers are put together otherwise than the built-in one's."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_teacher as tiny
import training
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from overproof.core.errors import StageError
from overproof.core.sections import StudentConfig
from overproof.student import initial
from overproof.student.vocabulary import Vocabulary, trim
from overproof.teacher.kept import TopK
from overproof.teacher.local import Teacher
from overproof.teacher.signals import shard_signals

BEGIN, TURN = "<|begin|>", "<|eot|>"
ENDS = ("<|eos|>", "<|eom|>", TURN)
RESERVED = tuple(f"<|reserved_{number}|>" for number in range(4))
SPECIAL = (BEGIN, *ENDS, "<|head|>", "<|/head|>", *RESERVED)
THINK = ("<think>", "</think>")  # added, but not special, as in Qwen 3
SIZE = 290  # 256 bytes, 2 + 10 special tokens, 22 more
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n"
    "{{ m['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n<think>{% endif %}"
)
ASKED = "Where is my <|reserved_2|> parcel?"


@cache
def tokenizer() -> Tokenizer:
    """As Llama 3's: control tokens beyond the vocabulary of the merges, one put before a text."""
    made = Tokenizer.from_str(tiny.tokenizer().to_str())
    made.add_special_tokens(list(SPECIAL))
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in THINK])
    begin = made.token_to_id(BEGIN)
    template = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, begin)]
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return made


def ids(*texts: str) -> list[int]:
    return [tokenizer().token_to_id(text) for text in texts]


def teacher() -> Teacher:
    """Its configuration names one end, its generation configuration all of them, as Llama 3's."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), bos_token=BEGIN, eos_token=TURN, chat_template=TEMPLATE
    )
    model = tiny.model(
        vocabulary=len(wrapped),
        bos_token_id=ids(BEGIN)[0],
        eos_token_id=ids(ENDS[0])[0],
        pad_token_id=None,
    )
    model.generation_config = GenerationConfig(eos_token_id=ids(*ENDS))
    return Teacher("llama", tiny.teacher().resource, model, wrapped)


def trimmed(whole: Tokenizer | None = None, *likely: str) -> Vocabulary:
    """Trimmed to the words of one question, and whatever else is likely."""
    whole = whole or tokenizer()
    mass = np.zeros(whole.get_vocab_size())
    text = " ".join(["Where is my parcel?", *likely])
    mass[tokenizer().encode(text, add_special_tokens=False).ids] = 1.0
    return trim(whole, mass, SIZE, (TURN,))


@pytest.fixture(scope="module")
def made() -> initial.Initial:
    """A whole initial student."""
    examples = tiny.examples(60)
    prefix = tuple(ids(BEGIN, "<|head|>"))
    signals = shard_signals(teacher().model, prefix, examples, training.ROOM, TopK(8, 4))
    config = StudentConfig(name="s", layers=2, vocabulary=SIZE, importance="even")
    return initial.make(
        teacher(), teacher(), prefix, examples, [signals.spread()], config, training.ROOM
    )


def test_what_is_put_before_a_text_has_the_students_id() -> None:
    ours = trimmed().tokenizer.encode("Where is my parcel?", "My parcel?")
    theirs = tokenizer().encode("Where is my parcel?", "My parcel?")
    assert theirs.tokens.count(BEGIN) == ours.tokens.count(BEGIN) == 2
    assert [trimmed().tokenizer.id_to_token(number) for number in ours.ids] == ours.tokens
    assert max(ours.ids) < SIZE


@pytest.mark.parametrize(
    "processor",
    [
        processors.BertProcessing((TURN, ids(TURN)[0]), (BEGIN, ids(BEGIN)[0])),
        processors.RobertaProcessing((TURN, ids(TURN)[0]), (BEGIN, ids(BEGIN)[0])),
        processors.TemplateProcessing(
            single="$0 both", special_tokens=[{"id": "both", "ids": ids(*ENDS), "tokens": ENDS}]
        ),
        processors.Sequence([processors.Sequence([tokenizer().post_processor])]),
        processors.ByteLevel(trim_offsets=True),
    ],
    ids=["bert", "roberta", "several", "nested", "none"],
)
def test_every_kind_of_post_processor(processor: Any) -> None:
    whole = Tokenizer.from_str(tokenizer().to_str())
    whole.post_processor = processor
    vocabulary = trimmed(whole)
    ours, theirs = vocabulary.tokenizer.encode("My parcel?"), whole.encode("My parcel?")
    assert vocabulary.teacher_ids_V[ours.ids].tolist() == theirs.ids
    assert ours.tokens == theirs.tokens


def test_what_a_post_processor_writes_stays_though_nothing_marks_it() -> None:
    state = json.loads(tokenizer().to_str())
    for row in state["added_tokens"]:
        row["special"] = False
    vocabulary = trimmed(Tokenizer.from_str(json.dumps(state)))
    assert vocabulary.whole(ids(BEGIN)[0]) is not None
    assert vocabulary.whole(ids(RESERVED[0])[0]) is None
    assert vocabulary.tokenizer.encode("My").tokens[0] == BEGIN


def test_what_a_caller_set_for_padding_and_cutting_is_left_out() -> None:
    whole = Tokenizer.from_str(tokenizer().to_str())
    whole.enable_padding(pad_id=ids(TURN)[0], pad_token=TURN, length=12)
    whole.enable_truncation(4)
    ours = trimmed(whole).tokenizer.encode("Where is my parcel?").ids
    assert ours == trimmed().tokenizer.encode("Where is my parcel?").ids


def test_every_special_token_survives_with_one_id() -> None:
    vocabulary = trimmed()
    for text in (*tiny.CONTROL, *SPECIAL):
        number = vocabulary.tokenizer.token_to_id(text)
        assert vocabulary.whole(ids(text)[0]) == number
        assert vocabulary.tokenizer.id_to_token(number) == text
        assert vocabulary.tokenizer.encode(text, add_special_tokens=False).ids == [number]
        assert vocabulary.tokenizer.decode([number]) == ""
    assert vocabulary.tokenizer.get_vocab_size() == vocabulary.size <= SIZE


def test_other_added_tokens_stay_where_the_task_uses_them() -> None:
    kept, lost = trimmed(None, "<think>"), trimmed()
    (token,) = ids("<think>")
    assert kept.tokenizer.encode("a<think>b", add_special_tokens=False).tokens == [
        "a",
        "<think>",
        "b",
    ]
    assert kept.pieces(token) == (kept.whole(token),)
    assert lost.whole(token) is None
    assert lost.tokenizer.decode(list(lost.pieces(token))) == "<think>"


def test_a_control_token_that_the_tokenizer_lacks_is_told() -> None:
    with pytest.raises(StageError, match="lacks its own control tokens") as caught:
        trim(tokenizer(), np.ones(1), SIZE, ("<|nobody|>",))
    assert "<|nobody|>" in caught.value.render()


def test_the_students_chat_is_the_teachers(made: initial.Initial, tmp_path: Path) -> None:
    initial.save_tokenizer(made.vocabulary.tokenizer, teacher(), tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert len(saved) == made.vocabulary.size
    assert saved.backend_tokenizer.get_vocab() == made.vocabulary.tokenizer.get_vocab()
    turns = [{"role": "user", "content": ASKED}]
    ours = saved.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    theirs = teacher().prompt_ids(ASKED, None)
    assert saved.decode(ours) == teacher().tokenizer.decode(theirs)
    control = [token for token in theirs if token in ids(*SPECIAL)]
    assert len(control) == 7
    whole = [made.vocabulary.whole(token) for token in control]
    assert [token for token in ours if token in saved.all_special_ids or token in whole] == whole
    assert saved("My")["input_ids"][0] == saved.bos_token_id == whole[0]


def test_names_of_control_tokens_are_passed_on(tmp_path: Path) -> None:
    given = teacher()
    names = {"unk_token": RESERVED[0], "image_token": RESERVED[1]}
    given.tokenizer.add_special_tokens({"unk_token": RESERVED[0]})
    given.tokenizer._set_model_specific_special_tokens({"image_token": RESERVED[1]})
    given.tokenizer.add_special_tokens({"extra_special_tokens": [RESERVED[2]]})
    given.tokenizer.chat_template = {"default": TEMPLATE, "tool_use": "{{ tools }}"}
    initial.save_tokenizer(trimmed().tokenizer, given, tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.special_tokens_map == given.tokenizer.special_tokens_map
    assert saved.special_tokens_map.items() >= names.items()
    assert saved.extra_special_tokens == [RESERVED[2]]
    assert saved.chat_template == TEMPLATE
    assert len(saved) == trimmed().size


def test_all_ends_are_the_students_too(made: initial.Initial, tmp_path: Path) -> None:
    assert teacher().stop_ids == tuple(ids(TURN, *ENDS[:2]))
    initial.save(made, teacher(), tmp_path)
    again = initial.load(tmp_path)
    wanted = [again.vocabulary.tokenizer.token_to_id(text) for text in (TURN, *ENDS[:2])]
    begin = again.vocabulary.tokenizer.token_to_id(BEGIN)
    for file in ("config.json", "generation_config.json"):
        saved = json.loads((tmp_path / file).read_bytes())
        assert saved["eos_token_id"] == wanted
        assert saved["bos_token_id"] == begin
        assert saved.get("pad_token_id") is None
    assert again.model.generation_config.eos_token_id == wanted
    assert [int(again.vocabulary.student_ids_U[end]) for end in teacher().stop_ids] == wanted


def test_an_end_stays_though_nothing_marks_it() -> None:
    """The configuration may name a plain word of the vocabulary."""
    given = teacher()
    (word,) = ids("Ġplease")
    given.model.generation_config.eos_token_id = [*ids(TURN), word]
    assert {TURN, BEGIN, "Ġplease"} <= initial.control_tokens(given)
    vocabulary = trim(tokenizer(), np.zeros(1), SIZE, initial.control_tokens(given))
    assert vocabulary.tokenizer.encode(" please").ids[1:] == [vocabulary.whole(word)]


def test_a_token_that_is_not_kept_has_no_id_in_the_configuration() -> None:
    """Better none than the first letter of its name."""
    given, vocabulary = teacher(), trimmed()
    given.model.config.pad_token_id = next(
        token for token in range(tiny.TOKENS) if vocabulary.whole(token) is None
    )
    given.model.config.bos_token_id = len(given.tokenizer) + 5
    given.model.generation_config.eos_token_id = ids(ENDS[0])[0]
    config = tiny.model().config
    initial.name_control_tokens(config, given, vocabulary)
    assert config.pad_token_id is None
    assert config.bos_token_id is None
    assert config.eos_token_id == vocabulary.whole(ids(ENDS[0])[0])
