"""One request to an OpenAI-compatible endpoint, and its answer or the reason why there is none.

The key is read from the environment, sent, and taken out of whatever a server says back: no
message, journal or proof holds it.
"""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from overproof.core.endpoint import Endpoint
from overproof.core.errors import StageError, UsageError, install
from overproof.teacher.remote.reply import Candidate, Place, Reply, Tokens
from overproof.teacher.remote.retry import asked_seconds, is_passing

NO_KEY = "none"  # sent where the recipe names no key: the client library insists on one
MOST_WORDS = 300  # characters of what a server says that a message shows
NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")
HINTS = {
    401: "the key is not accepted: look at the variable that teacher.endpoint.key names",
    403: "the key may not use this model",
    404: "teacher.endpoint.url or teacher.model is wrong: `overproof doctor RECIPE` lists models",
    400: "the service refuses a field: see sample, signals and teacher.endpoint in the recipe",
}


class FailedError(Exception):
    """No answer.

    Attributes:
        passing: whether another attempt may succeed.
        billed: whether it may have been billed all the same.
        wait: seconds that the server asks to wait.
        hint: what to do if it stays so.
    """

    def __init__(
        self,
        why: str,
        *,
        passing: bool,
        billed: bool,
        wait: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(why)
        self.why, self.passing, self.billed = why, passing, billed
        self.wait, self.hint = wait, hint


def key_of(endpoint: Endpoint) -> str | None:
    """The key from the environment; None: the recipe names none.

    Raises:
        UsageError: the variable is not set.
    """
    if endpoint.key is None:
        return None
    found = os.environ.get(endpoint.key, "").strip()
    if not found:
        raise UsageError(
            f"the environment variable {endpoint.key} is not set",
            details=["teacher.endpoint.key names it: it holds the key of the endpoint"],
            hint=f"export {endpoint.key}=... in the shell that runs this command",
        )
    return found


class Client:
    """An endpoint, asked in one event loop; use it in an `async with` block."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Read the key and get ready; nothing is sent yet.

        Raises:
            UsageError: the key is not there.
            StageError: the client library is not installed.
        """
        try:
            import openai
        except ImportError as error:
            raise StageError(
                "the client for remote teachers is not installed",
                details=[str(error)],
                hint=install("distill"),
            ) from error
        self._openai, self._key = openai, key_of(endpoint)
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.url,
            api_key=self._key or NO_KEY,
            timeout=endpoint.timeout_seconds,
            max_retries=0,
        )
        # The library takes these from the environment: they are for its maker, not for this host.
        self._client.organization = self._client.project = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def answer(self, body: Mapping[str, Any]) -> Reply:
        """The answer to one request of the chat API.

        Raises:
            FailedError: there is none.
        """
        known = {name: body[name] for name in ("model", "messages")}
        rest = {name: value for name, value in body.items() if name not in known}
        try:
            found = await self._client.chat.completions.create(**known, extra_body=rest)
        except (self._openai.OpenAIError, ValueError) as error:
            raise self._failed(error) from None
        try:
            return read(found.model_dump())
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise FailedError(
                f"what came back is no answer of the chat API ({type(error).__name__})",
                passing=True,
                billed=True,
            ) from None

    async def models(self) -> list[str]:
        """Ids of the models that the endpoint lists.

        Raises:
            FailedError: it lists none.
        """
        try:
            page = await self._client.models.list()
            return [str(model.id) for model in page.data]
        except (self._openai.OpenAIError, ValueError, AttributeError, TypeError) as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> FailedError:
        """What went wrong, without the key."""
        if isinstance(error, self._openai.APIStatusError):
            status = error.status_code
            now = dt.datetime.now(dt.UTC)
            return FailedError(
                f"HTTP {status}: {self._clean(error.message)}",
                passing=is_passing(status),
                billed=False,
                wait=asked_seconds(error.response.headers, now),
                hint=HINTS.get(status),
            )
        cause = error.__cause__ or error
        return FailedError(
            self._clean(f"{type(cause).__name__}: {cause}".rstrip(": ")),
            passing=True,
            billed=type(cause).__name__ not in NEVER_SENT,
        )

    def _clean(self, text: str) -> str:
        if self._key:
            text = text.replace(self._key, "[key]")
        return " ".join(text.split())[:MOST_WORDS]


def read(found: Mapping[str, Any]) -> Reply:
    """A chat completion.

    Raises:
        LookupError, TypeError, ValueError: it is none.
    """
    (choice,) = found["choices"][:1]
    usage, message = found.get("usage"), choice["message"]
    logprobs = (choice.get("logprobs") or {}).get("content")
    used = Tokens(int(usage["prompt_tokens"]), int(usage["completion_tokens"])) if usage else None
    fingerprint = found.get("system_fingerprint")
    if not isinstance(found["model"], str):
        raise TypeError("no model")
    return Reply(
        # Half of a surrogate pair has no bytes.
        text=str(message.get("content") or "").encode("utf-8", "replace").decode(),
        finish=str(choice["finish_reason"]),
        model=found["model"],
        fingerprint=None if fingerprint is None else str(fingerprint),
        used=used,
        received=int(time.time()),
        places=None if logprobs is None else [_place(row) for row in logprobs],
    )


def _place(row: Mapping[str, Any]) -> Place:
    top: list[Candidate] = [
        (_hex(one), float(one["logprob"])) for one in row.get("top_logprobs") or ()
    ]
    return _hex(row), top


def _hex(row: Mapping[str, Any]) -> str:
    """A token's bytes; its text where the service gives no bytes, as for some control tokens."""
    given = row.get("bytes")
    return bytes(given).hex() if given is not None else str(row["token"]).encode().hex()
