"""llama.cpp in this process, through `xllamacpp`: the engine that users of a build have.

Only the public completion calls are used. They give no log-probabilities of a given text, so
`Engine.log_probs` asks for one token after each prefix; the engine keeps what it has read of the
common prefix, and an answer costs one decoding step plus the printing of the distribution.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from overproof.core import device
from overproof.core.errors import StageError, install
from overproof.release.header import GREEDY, Header, Sampling, read_header

Json = dict[str, Any]
Floats = NDArray[np.float32]

DEFAULT_CONTEXT = 2048  # tokens; the demo's conversations have under 300
SILENT = -1  # llama.cpp's verbosity below errors: failures are told by our own exceptions
FORCE = 1e4  # added to a logit to make the engine draw that token
# As in transformers: the temperature acts first. llama.cpp on its own would cut by top-p before.
SAMPLERS = ("temperature", "top_k", "top_p")


@dataclass(frozen=True)
class Answer:
    """What the engine wrote.

    Attributes:
        text: the answer without control tokens.
        finish: `stop` (the model ended its turn) or `length` (max_tokens reached).
        prompt_tokens: tokens read, cached ones included.
        prefill_tokens_per_second: reading speed; 0 where nothing was read.
        decode_tokens_per_second: writing speed; 0 where one token or none was written.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


def version() -> Json:
    """Name and version of the engine, as receipts and speeds record it.

    Raises:
        StageError: it is not installed.
    """
    return {"name": "llama.cpp (xllamacpp)", "version": str(_library().__version__)}


def default_threads() -> int:
    """Threads that decode a token together: one for each idle core.

    A token takes hundreds of short parallel sections. A thread that shares its core with other
    work makes all others wait in each of them: 135M parameters on two cores decoded 108 tokens/s
    with two threads and 53 with one on a quiet machine, 3 and 50 on a busy one. Threads that
    sleep while they wait (`OMP_WAIT_POLICY=PASSIVE`, which training on shared cores needs)
    decoded 32: one is better there too.
    """
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
        return 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, round(device.cores() - load))


def _library() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise StageError(
            "the engine for GGUF files is not installed",
            details=[str(error)],
            hint=install("distill"),
        ) from error
    return xllamacpp


class Engine:
    """A loaded GGUF file. Use it in a `with` block; calls are not thread-safe."""

    def __init__(
        self, file: Path, *, context: int = DEFAULT_CONTEXT, threads: int | None = None
    ) -> None:
        """Load a file.

        Args:
            file: the GGUF file.
            context: longest prompt plus answer, tokens.
            threads: processor threads; `default_threads()` where none is given.

        Raises:
            StageError: no such file, not a GGUF file, cut short, or of an unknown architecture.
        """
        library = _library()
        if not file.is_file():
            raise StageError(f"no GGUF file at {file}")
        parameters = library.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx = context
        parameters.n_parallel = 1
        parameters.verbosity = SILENT
        parameters.cpuparams.n_threads = threads or default_threads()
        parameters.cpuparams_batch.n_threads = threads or default_threads()
        parameters.fit_params = False  # a probe of graphics memory; costs a second load
        parameters.cache_ram_mib = 0  # no second copy of old prompts: memory is measured
        parameters.warmup = False
        self.file = file
        try:
            self._server: Any = library.Server(parameters)
        except RuntimeError as error:
            raise StageError(
                f"llama.cpp cannot load {file}",
                details=[f"{file.stat().st_size:,} bytes; engine version {library.__version__}"],
                hint="is the file complete? export it again",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the model's memory back."""
        self._server = None

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        stream: Callable[[str], None] | None = None,
        stop: bool = True,
    ) -> Answer:
        """Continue a prompt.

        Args:
            prompt: text, control tokens included, or token ids.
            max_tokens: longest answer.
            stream: gets each piece of text as it is written.
            stop: end at the end-of-turn token; off to measure speed.

        Raises:
            StageError: the engine refuses, or the prompt does not fit into the context.
        """
        request = {
            "prompt": prompt if isinstance(prompt, str) else [int(token) for token in prompt],
            "ignore_eos": not stop,
            **_draw(max_tokens, sampling),
        }
        return self._ask(self._server.handle_completions, request, stream)

    def chat(
        self,
        messages: Sequence[Json],
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        stream: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a conversation, formed by the chat template that the file carries.

        Args:
            messages: rows of `role` and `content`.

        Raises:
            StageError: the engine refuses, or the conversation does not fit into the context.
        """
        request = {"messages": list(messages), **_draw(max_tokens, sampling)}
        return self._ask(self._server.handle_chat_completions, request, stream)

    def log_probs(self, tokens: Sequence[int], positions: Sequence[int]) -> Floats:
        """Log-probabilities of every next token after given prefixes of a text.

        Args:
            tokens: the text.
            positions: row i of the answer is the distribution after `tokens[: positions[i] + 1]`;
                ascending ones are fast.

        Returns:
            float32 of shape (positions, vocabulary), nats.

        Raises:
            StageError: the engine refuses a token, or leaves a token of the vocabulary out.
        """
        return np.stack([self._next(tokens[: position + 1]) for position in positions])

    def _next(self, prefix: Sequence[int]) -> Floats:
        found = self._complete(
            {
                "prompt": [int(token) for token in prefix],
                "n_probs": len(self.header.tokens),
                "post_sampling_probs": False,
                # A token that ends within a character is kept back, and its distribution with
                # it: draw a letter instead. The distribution is taken before this has a say.
                "logit_bias": [[self.header.letter, FORCE]],
                **_draw(1),
            }
        )
        rows = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        values = np.full(len(self.header.tokens), np.nan, np.float32)
        values[[row["id"] for row in rows]] = [row["logprob"] for row in rows]
        if np.isnan(values).any():
            raise StageError(
                f"{self.file}: the engine gave no log-probability for some tokens",
                details=[f"{int(np.isnan(values).sum())} of {len(values)}"],
            )
        # llama.cpp sums the exponentials in single precision: off by 1e-4 at 49k tokens.
        return values - np.float32(np.logaddexp.reduce(values.astype(np.float64)))

    def first_difference(self, text: str, tokens: Sequence[int]) -> int | None:
        """Where the engine's own cutting of a text leaves `tokens`; None if it never does.

        The engine reports how much of a prompt it had read before. It reads the ids, then the
        text, each with the end-of-turn token behind it: what it recognises is their common
        beginning.

        Raises:
            StageError: the engine refuses a token.
        """
        header = self.header
        if header.adds_first and header.first is not None:
            text = text.removeprefix(header.first)
        # The last token of a prompt is always read anew: the text gets one end more, so that
        # all of `tokens` and the first end can be recognised.
        self._complete({"prompt": [*map(int, tokens), header.end], **_draw(1)})
        found = self._complete({"prompt": text + header.tokens[header.end] * 2, **_draw(1)})
        known = int(found["usage"]["prompt_tokens_details"]["cached_tokens"])
        return None if known > len(tokens) else known

    @cached_property
    def header(self) -> Header:
        """The tokenizer in the file's header.

        Raises:
            StageError: the file carries no tokenizer, or no end of turn.
        """
        return read_header(self.file)

    def _complete(self, request: Json) -> Json:
        found: Json = self._server.handle_completions({**request, "cache_prompt": True})
        return self._checked(found)

    def _checked(self, found: Json) -> Json:
        error = found.get("error")
        if error:
            raise StageError(
                f"llama.cpp refused a request to {self.file}",
                details=[str(error.get("message", error))],
                hint="shorten the prompt"
                if error.get("type") == "exceed_context_size_error"
                else None,
            )
        return found

    def _ask(
        self, handle: Callable[..., Any], request: Json, stream: Callable[[str], None] | None
    ) -> Answer:
        if stream is None:
            chunks = [self._checked(handle(request))]
        else:
            chunks = self._streamed(handle, request, stream)
        choices = [chunk["choices"][0] for chunk in chunks]
        last = chunks[-1]
        times = last["timings"]
        return Answer(
            text="".join(_text(choice) for choice in choices),
            finish=str(choices[-1]["finish_reason"]),
            prompt_tokens=int(times["cache_n"]) + int(times["prompt_n"]),
            completion_tokens=int(times["predicted_n"]),
            prefill_tokens_per_second=float(times["prompt_per_second"]),
            decode_tokens_per_second=float(times["predicted_per_second"]),
        )

    def _streamed(
        self, handle: Callable[..., Any], request: Json, stream: Callable[[str], None]
    ) -> list[Json]:
        chunks: list[Json] = []
        failed: list[BaseException] = []

        def receive(chunk: Json) -> bool:
            """Pass a piece on; true stops the engine, which swallows what a callback raises."""
            try:
                chunks.append(self._checked(chunk))
                piece = _text(chunk["choices"][0])
                if piece:
                    stream(piece)
            except BaseException as error:  # raised again below, Ctrl-C and a closed pipe too
                failed.append(error)
                return True
            return False

        handle({**request, "stream": True}, receive)
        if failed:
            raise failed[0]
        if not chunks:
            raise StageError(f"llama.cpp gave no answer from {self.file}")
        return chunks


def _draw(max_tokens: int, sampling: Sampling = GREEDY) -> Json:
    """A request's settings: these, and none of llama.cpp's own defaults."""
    return {
        "max_tokens": max_tokens,
        "samplers": list(SAMPLERS),
        **asdict(sampling),
    }


def _text(choice: Json) -> str:
    """The text of a choice, whole or a piece, of a completion or of a conversation."""
    if "text" in choice:
        return str(choice["text"])
    return str((choice.get("message") or choice.get("delta") or {}).get("content") or "")
