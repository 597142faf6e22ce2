"""Teachers on this machine: the built-in one, a folder, a hub name, or a GGUF file."""

from __future__ import annotations

import copy
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import jinja2  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import SafetensorError  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from overproof.core.artifact import Json, Resource  # noqa: E402
from overproof.core.errors import StageError  # noqa: E402
from overproof.core.sections import Shot  # noqa: E402
from overproof.teacher.files import identify  # noqa: E402
from overproof.teacher.forward import fast_dtype, halved  # noqa: E402
from overproof.teacher.gguf_once import read_once  # noqa: E402
from overproof.teacher.tokens import byte_level, token_ids  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# Some chat templates print today's date; a prompt, and what is keyed by it, must not change
# overnight. This is the day that Llama 3.1's template prints where it is given none. The macro
# stands before the function of that name, which transformers puts among the template's globals.
SAME_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
# What transformers, safetensors, tokenizers and gguf raise for files that they cannot read.
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    ImportError,
    SafetensorError,
    struct.error,
)


Turn = dict[str, str]  # of a conversation: `role` and `content`


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher, or the base of a student, see `load_base`.

    Attributes:
        name: as the recipe names it.
        resource: its weights by digest, as every artifact made from it records.
        model: a causal language model of transformers, fp32, evaluation mode.
        tokenizer: its tokenizer, chat template included.
    """

    name: str
    resource: Resource
    model: Any
    tokenizer: Any

    @cached_property
    def half(self) -> Any:
        """A copy for speed: parameters in bf16 where the processor multiplies it faster.

        Buffers stay as they are, see `halved`. Where bf16 is no faster, or `fast_dtype` is another,
        it is the model itself.
        """
        if fast_dtype(self.model) != torch.bfloat16:
            return self.model
        return halved(copy.deepcopy(self.model))

    @cached_property
    def tokenizer_state(self) -> Json:
        """What its tokenizer is made of; raises where a student could not have it, see `tokens`."""
        return byte_level(getattr(self.tokenizer, "backend_tokenizer", self.tokenizer))

    def prompt_ids(self, prompt: str, system: str | None, shots: Sequence[Shot] = ()) -> list[int]:
        """Token ids of a conversation up to where the assistant speaks; the same every day.

        Args:
            shots: turns that stand before the prompt.

        Raises:
            StageError: the chat template refuses it.
        """
        try:
            ids = self.tokenizer.apply_chat_template(
                conversation(prompt, system, shots),
                add_generation_prompt=True,
                return_dict=False,
                chat_template=self.chat_template,
            )
        except jinja2.TemplateError as error:
            raise StageError(
                f"the chat template of teacher {self.name} refuses the conversation",
                details=[str(error)],
                hint="many templates know no system message: leave teacher.system out"
                if system
                else "use the model's own chat template",
            ) from error
        return [int(token) for token in ids]

    def ended(self, answer: Sequence[int]) -> bool:
        """Whether an answer has its end, and was not cut off."""
        return bool(answer) and answer[-1] in self.stop_ids

    def text(self, tokens: Sequence[int]) -> str:
        """What the tokens of an answer say, without the token that ends it."""
        said = tokens[:-1] if self.ended(tokens) else tokens
        return str(self.tokenizer.decode(said, skip_special_tokens=False))

    def whole(self, answer: Sequence[int]) -> str | None:
        """See `text`; None: it was cut off."""
        return self.text(answer) if self.ended(answer) else None

    @property
    def chat_template(self) -> str:
        """The template of every conversation, and of the student; it prints the same day always."""
        template = str(self.tokenizer.get_chat_template())
        return SAME_DAY + template if "strftime_now" in template else template

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: all that the model's makers name, the end of a turn first.

        The end of a turn is what the tokenizer calls its own end: several makers list the end of
        a text before it, and formats that hold one end hold the first.

        Raises:
            StageError: the model's configuration names none.
        """
        stop = self.model.generation_config.eos_token_id
        stop = self.model.config.eos_token_id if stop is None else stop
        if stop is None:
            raise StageError(
                f"teacher {self.name} does not say which token is the end of an answer",
                hint="give `eos_token_id` in its generation_config.json",
            )
        ends = dict.fromkeys(map(int, stop if isinstance(stop, Sequence) else [stop]))
        turn = self.tokenizer.eos_token_id
        return tuple(sorted(ends, key=lambda end: end != turn))

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def conversation(prompt: str, system: str | None, shots: Sequence[Shot] = ()) -> list[Turn]:
    """The turns up to where the assistant speaks; see `Teacher.prompt_ids`."""
    turns = [{"role": "system", "content": system}] if system else []
    for shot in shots:
        turns += [
            {"role": "user", "content": shot.prompt},
            {"role": "assistant", "content": shot.answer},
        ]
    return [*turns, {"role": "user", "content": prompt}]


def load(name: str) -> Teacher:
    """Load a teacher in fp32.

    Raises:
        StageError: the files cannot be read as a model, or no student can speak its tokens.
        and whatever `identify` raises.
    """
    return read(name, *identify(name))


def load_base(name: str) -> Teacher:
    """Load a model to cut a student from, in fp32; it need not know how to converse.

    Raises:
        what `load` raises.
    """
    base = _read(name, *identify(name))
    _require_rows(base)
    return base


def read(name: str, path: Path, resource: Resource) -> Teacher:
    """Load a teacher whose files are known, in fp32; see `load`.

    Args:
        name: as the recipe names it.
        path: of a GGUF file or a model folder. resource: what stands for it.
    """
    teacher = _read(name, path, resource)
    _require_turns(teacher)
    _require_rows(teacher)
    return teacher


def _read(name: str, path: Path, resource: Resource) -> Teacher:
    try:
        if path.is_file():
            model, tokenizer = _load_gguf(path)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(path)
    except UNREADABLE as error:
        raise _unreadable(name, path, error) from error
    return Teacher(name, resource, model.eval(), tokenizer)


def tokenizer_state(name: str, path: Path) -> Json:
    """What a model's tokenizer is made of, without loading the model.

    Args:
        name: as the recipe names it. path: see `identify`.

    Raises:
        StageError: the files cannot be read, or no student can speak these tokens.
    """
    try:
        if path.is_file():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(path)
    except UNREADABLE as error:
        raise _unreadable(name, path, error) from error
    return byte_level(getattr(tokenizer, "backend_tokenizer", tokenizer))


def _require_rows(model: Teacher) -> None:
    """Refuse, before any work, a model whose tokens a student could not be given.

    1. Its tokenizer can be trimmed.
    2. The model has a row for every token.
    """
    # 1.
    texts = {number: text for text, number in token_ids(model.tokenizer_state).items()}
    # 2.
    rows = model.model.get_input_embeddings().weight.shape[0]
    beyond = max(texts, default=0)
    if beyond >= rows:
        raise StageError(
            f"{model.name} has tokens that its model has no embedding for",
            details=[f"token {texts[beyond]!r} has id {beyond}, the model {rows} rows"],
            hint="use a model whose embedding was resized with its tokenizer",
        )


def _require_turns(teacher: Teacher) -> None:
    """Refuse, before any work, a teacher whose turns a student could not be given.

    1. It has a chat template, the default one where it has several.
    2. What ends an answer is a token.
    """
    name = teacher.name
    # 1.
    template = teacher.tokenizer.chat_template
    if template is None or (isinstance(template, dict) and "default" not in template):
        raise StageError(
            f"teacher {name} has no chat template", hint="use an instruction-tuned model"
        )
    # 2.
    texts = set(token_ids(teacher.tokenizer_state).values())
    unknown = [end for end in teacher.stop_ids if end not in texts]
    if unknown:
        raise StageError(
            f"teacher {name} ends an answer with an id that is no token",
            details=[f"eos_token_id: got {unknown}, wanted ids of its tokenizer"],
            hint="correct `eos_token_id` in its generation_config.json",
        )


def _unreadable(name: str, path: Path, error: Exception) -> StageError:
    return StageError(
        f"teacher {name} cannot be loaded",
        details=[str(error).splitlines()[0] if str(error) else type(error).__name__],
        hint=f"is the file complete? {path} has {_size(path):,} bytes; fetch it again if not",
    )


def _load_gguf(path: Path) -> tuple[Any, Any]:
    """Load a GGUF file; the weights are copied into a fresh model, which can be saved."""
    folder, name = path.parent, path.name
    with read_once():
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.tie_weights()
    fresh.generation_config = loaded.generation_config
    return fresh, tokenizer


def _size(path: Path) -> int:
    files = [path] if path.is_file() else list(path.glob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())


def config_of(name: str) -> Any:
    """The teacher's configuration, without its weights; for the plan of a dry run.

    Raises:
        StageError: the files cannot be read as a model.
        and whatever `identify` raises.
    """
    path, _ = identify(name)
    try:
        if path.is_file():
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        return AutoConfig.from_pretrained(path)
    except UNREADABLE as error:
        raise _unreadable(name, path, error) from error
