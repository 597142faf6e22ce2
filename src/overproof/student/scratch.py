"""A teacher of one's own, trained from scratch on certified records: the stage `teacher`.

What is distilled from it then comes from nowhere else: the records, their licences and the steps
are all in the proof. It goes on with text, and answers nothing: its chat template shows a prompt as
it stands, behind the token that begins every text.

1. Make a byte-level BPE from the records.
2. Make a model of the configuration that the recipe names, with random weights.
3. Train it by cross-entropy, one record a row, with the workers and checkpoints of any training.

Nothing balances the load of a mixture's experts: what the routers choose is what they choose.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from overproof.core import host  # noqa: E402
from overproof.core.artifact import Artifact, Json, Resource, Work, build  # noqa: E402
from overproof.core.config import find_data  # noqa: E402
from overproof.core.console import meter  # noqa: E402
from overproof.core.digest import sha256_file  # noqa: E402
from overproof.core.errors import UsageError  # noqa: E402
from overproof.core.methods import Scratch  # noqa: E402
from overproof.core.sections import TrainConfig  # noqa: E402
from overproof.data import dataset  # noqa: E402
from overproof.student.arms import LOSS_DIGITS  # noqa: E402
from overproof.student.examples import build_train_set  # noqa: E402
from overproof.student.experts import TABLE  # noqa: E402
from overproof.student.initial import save_model  # noqa: E402
from overproof.student.train import Trainer, train  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402
from overproof.teacher.example import Example  # noqa: E402
from overproof.teacher.forward import packs  # noqa: E402
from overproof.teacher.local import Teacher  # noqa: E402
from overproof.teacher.tokens import byte_level, token_ids  # noqa: E402

BEGIN, END = "<|begin|>", "<|end|>"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
# Of a published configuration, what says how its weights are stored: these are made in fp32.
STORAGE = ("quantization_config", "expert_dtype", "torch_dtype", "dtype", "transformers_version")


def teacher(
    corpus: Artifact, config: Scratch, seed: int, recipe: Path, store: Path, by: Trainer = train
) -> Artifact:
    """The stage `teacher`.

    Args:
        corpus: the certified records that it is trained on.
        recipe: file of the recipe, beside which the configuration may lie.
        by: what trains it.
    """
    shape = find_data(config.configuration, recipe)

    def make(work: Work) -> Json:
        texts = list(texts_of(corpus))
        # 1.
        tokenizer = make_tokenizer(texts, config.vocabulary)
        # 2.
        model = make_model(shape, tokenizer, seed)
        # 3.
        settings = training(config)
        examples = work.scratch("examples")
        build_train_set(
            examples,
            (),
            examples_of(texts, tokenizer, config.sequence_length),
            whole(tokenizer),
            None,
            alone=not packs(model),
        )
        with meter("training teacher", config.steps, "steps") as progress:
            done = by(model, examples, settings, seed, work.scratch("train"), progress, None)
        work.measured["machine"] = host.machine()
        save_model(model, work.folder)
        wrapped(tokenizer).save_pretrained(work.folder)
        return {
            "records": len(texts),
            "vocabulary": tokenizer.get_vocab_size(),
            "parameters": sum(one.numel() for one in model.parameters()),
            "steps": config.steps,
            "tokens": done.tokens,
            "engine": done.engine,
            "workers": done.workers,
            "losses": [round(loss, LOSS_DIGITS) for loss in done.losses],
        }

    settings: Json = {
        **config.model_dump(exclude={"configuration", "data"}),
        "configuration": {"name": shape.name, "sha256": sha256_file(shape)},
        "seed": seed,
    }
    return build(
        store, "teacher", inputs={"corpus": corpus}, config=settings, make=make, layer="student"
    )


def sketch(config: Scratch, name: str, recipe: Path) -> Teacher:
    """The teacher as it will be, but for weights and words: to ask what can be made of it."""
    tokenizer = make_tokenizer((), config.vocabulary)
    model = make_model(find_data(config.configuration, recipe), tokenizer, 0)
    resource = Resource("teacher", name, "stage:teacher", "0" * 64)
    return Teacher(name, resource, model, wrapped(tokenizer))


def training(config: Scratch) -> TrainConfig:
    """How it is trained, as any student is."""
    return TrainConfig(
        steps=config.steps,
        sequences=config.sequences,
        sequence_length=config.sequence_length,
        learning_rate=config.learning_rate,
    )


def texts_of(corpus: Artifact) -> Iterator[str]:
    """The text of each record: of a conversation all its turns, one a line."""
    for row in dataset.rows(corpus):
        yield "\n".join(text for _, text in row.record.parts())


def make_tokenizer(
    texts: Iterable[str], size: int, control: Sequence[str] = (END, BEGIN)
) -> Tokenizer:
    """A byte-level BPE; equal texts give an equal one.

    Args:
        control: tokens that no text has.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=list(control),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    made.train_from_iterator(texts, trainer)
    return made


def control(tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids of the tokens that begin and end a text."""
    ids = tokenizer.get_vocab()
    return ids[BEGIN], ids[END]


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads it, with the chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def config_of(shape: Path) -> Any:
    """The configuration in a file.

    Raises:
        UsageError: no configuration that transformers knows.
    """
    try:
        raw = json.loads(shape.read_bytes())
        settings = {key: value for key, value in raw.items() if key not in STORAGE}
        return AutoConfig.for_model(**settings)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UsageError(
            f"{shape} is no configuration of a model",
            details=str(error).splitlines()[:1],
            hint="wanted a JSON object of `model_type` and settings, as in config.json",
        ) from error


def make_model(shape: Path, tokenizer: Tokenizer, seed: int) -> Any:
    """A model of that configuration and this vocabulary, its weights random, fp32.

    A table that routes tokens by their id is published with a model, and starts here at random:
    different experts for each token, all equally likely.
    """
    config = config_of(shape)
    config.vocab_size = tokenizer.get_vocab_size()
    config.bos_token_id, config.eos_token_id = control(tokenizer)
    config.pad_token_id = None
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, table in model.named_buffers():
        if name.endswith(f".{TABLE}"):
            count = model.get_submodule(name.removesuffix(f".{TABLE}")).num_experts
            table.copy_(torch.rand(len(table), count).topk(table.shape[1]).indices)
    return model


def examples_of(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> list[Example]:
    """Each text between the tokens that begin and end it, cut where a sequence ends."""
    begin, end = control(tokenizer)
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [
        Example(str(number), (begin,), (*one.ids, end)[: length - 1])
        for number, one in enumerate(encoded)
    ]


def whole(tokenizer: Tokenizer) -> Vocabulary:
    """A vocabulary that keeps every token, as it is."""
    texts = {number: text for text, number in token_ids(byte_level(tokenizer)).items()}
    same = np.arange(len(texts))
    return Vocabulary(tokenizer, same, same, np.ones(len(texts), np.bool_), texts)
