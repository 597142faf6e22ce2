"""Section of the recipe: a teacher behind an OpenAI-compatible endpoint, and what it may cost."""

from __future__ import annotations

import re
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from overproof.core.methods import OnPolicy, Signals, Text, TopK
from overproof.core.section import Positive, Section

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What a request says for itself; `extra` must not say it otherwise.
OWN_FIELDS = frozenset(
    """
    model messages max_tokens max_completion_tokens temperature top_p seed n stream stream_options
    logprobs top_logprobs
    """.split()  # noqa: SIM905 (a list that people can read)
)
LEAST_LOGPROBS = 2  # of one nobody can tell whether it is a distribution or the text
MOST_LOGPROBS = 20  # OpenAI's limit of `top_logprobs`; other servers may have more


class Price(Section):
    """What a million tokens cost."""

    input: float = Field(ge=0.0, allow_inf_nan=False, description="of prompts")
    output: float = Field(ge=0.0, allow_inf_nan=False, description="of answers")
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="ISO 4217 code; a label")

    def of(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Money for so many tokens."""
        return (self.input * prompt_tokens + self.output * answer_tokens) / 1e6


class Budget(Section):
    """What may be spent in all, over every run into the same folder; reserved before a request."""

    money: float | None = Field(
        None, gt=0.0, allow_inf_nan=False, description="in the price's currency; needs a price"
    )
    tokens: Positive | None = Field(None, description="of prompts and answers together")

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.money is None and self.tokens is None:
            raise ValueError("a budget limits money, tokens or both")
        return self


class Endpoint(Section):
    """A service that answers in the teacher's name; `teacher.model` is what it is asked for."""

    url: str = Field(description="base URL, such as https://api.example.com/v1; no key in it")
    key: str | None = Field(
        None, description="name of the environment variable with the key; none is sent by default"
    )
    operator: Literal["vendor", "own"] = Field(
        "vendor",
        description="`vendor`: the terms of its service count; `own`: your server, so those of the "
        "weights that it serves",
    )
    aliases: tuple[str, ...] = Field(
        (), description="other ids that may answer, such as the dated name; one answers a whole run"
    )
    concurrency: int = Field(8, ge=1, le=1024, description="requests in flight at most")
    attempts: int = Field(6, ge=1, le=100, description="of each request, the first among them")
    timeout_seconds: float = Field(
        300.0, gt=0.0, allow_inf_nan=False, description="without a byte of an answer"
    )
    longest_wait_seconds: float = Field(
        120.0, gt=0.0, allow_inf_nan=False, description="between two attempts; asked for more, stop"
    )
    limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the service calls the longest answer"
    )
    seed: bool = Field(True, description="send a seed with each request; some services refuse it")
    prompt_overhead_tokens: int = Field(
        128, ge=0, description="that the service's chat template may add to a prompt at most"
    )
    extra: dict[str, Any] = Field({}, description="further fields of each request's body")
    price: Price | None = None
    budget: Budget | None = None

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        """Messages leave the value out: it may hold a secret."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("it is no URL") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("wanted http:// or https:// and a host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("it holds more than scheme, host, port and path; a key goes into key")
        return url.rstrip("/")

    @field_validator("key")
    @classmethod
    def _names_a_variable(cls, key: str | None) -> str | None:
        if key is not None and (not VARIABLE.fullmatch(key) or key.startswith(("sk_", "sk-"))):
            raise ValueError("wanted the name of an environment variable, not the key itself")
        return key

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if own := sorted(OWN_FIELDS & self.extra.keys()):
            raise ValueError(f"extra says {', '.join(own)}, which requests say for themselves")
        if self.budget and self.budget.money is not None and self.price is None:
            raise ValueError("budget.money needs a price")
        if self.operator == "vendor" and (self.price is None or self.budget is None):
            raise ValueError(
                "a vendor's endpoint needs price and budget; the price of a free one is 0"
            )
        return self

    @property
    def origin(self) -> str:
        """Scheme, host and port: how a proof names the place."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")

    @property
    def known(self) -> dict[str, Any]:
        """What an answer depends on: the rest is how it is fetched and what it may cost."""
        return self.model_dump(mode="json", include={"url", "limit_field", "seed", "extra"})


def demand_given(base: str | None, signals: Signals, on_policy: OnPolicy | None) -> None:
    """Refuse what a service cannot give: it gives text, and the likeliest tokens beside it.

    Args:
        base: the model here that the student is cut from.
        on_policy: whether the teacher judges what the student says.

    Raises:
        ValueError: sections that do not go together; a recipe's message.
    """
    if base is None:
        raise ValueError("teacher.endpoint has no weights: name a model here in student.base")
    if on_policy is not None:
        raise ValueError("train.on_policy needs the teacher's weights, teacher.endpoint has none")
    if isinstance(signals, Text):
        return
    if not isinstance(signals, TopK):
        raise ValueError(f"an endpoint gives no `{signals.kind}` signals: take `text` or `top-k`")
    given = (signals.prompts, signals.tail_draws, signals.temperature, signals.while_sampling)
    if given != (False, 0, 1.0, True) or not LEAST_LOGPROBS <= signals.top_k <= MOST_LOGPROBS:
        raise ValueError(
            "`top-k` signals of an endpoint are those of its answers, a tail's mass and no more: "
            "prompts: false, tail_draws: 0, temperature: 1, while_sampling: true, and top_k from "
            f"{LEAST_LOGPROBS} to {MOST_LOGPROBS}"
        )
