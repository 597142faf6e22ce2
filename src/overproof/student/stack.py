"""A model's layers, run one at a time on fixed inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.errors import StageError  # noqa: E402
from overproof.data.pack import Packed, pack  # noqa: E402
from overproof.teacher.forward import model_inputs  # noqa: E402

PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
PROBE = (11, 42, 7, 23, 5, 31, 2, 47, 13, 29, 3, 17)  # any tokens; taken modulo the vocabulary
PROBE_NATS = 1e-3  # in fp32 the two differ by rounding, 1e-5
USE = "use a teacher built as a stack of decoder layers: Llama, Mistral, SmolLM2"


@torch.inference_mode()
def demand_decoder(model: Any) -> None:
    """Refuse a model that is more than embedding, layers, norm and head.

    1. Its parts must be where this package looks for them.
    2. Packed sequences, run as a whole and layer by layer, must give the logits that the model
       itself gives for each text. Where states or logits are scaled or capped between the
       parts (Gemma, Granite, Cohere), they do not.

    Args:
        model: in fp32; runs a few tokens.

    Raises:
        StageError: the architecture has no plain stack of decoder layers.
    """
    # 1.
    _demand_parts(model)
    # 2.
    try:
        gap = _probe(model)
    except (TypeError, AttributeError) as error:  # a part that is called in another way
        reason = str(error)
    else:
        reason = f"log-probabilities part by part differ by {gap:.3g} nats from the model's own"
        if gap <= PROBE_NATS:  # which no NaN is
            return
    raise StageError(
        f"{type(model).__name__} is no plain stack of decoder layers", details=[reason], hint=USE
    )


def _probe(model: Any) -> float:
    """Largest difference of a log-probability, part by part against the model's own, nats."""
    prefix, texts = PROBE[:3], (PROBE[3:9], PROBE[5:12])
    batch = pack(prefix, texts, len(prefix) + sum(map(len, texts)))  # one row
    size = model.config.vocab_size
    own = torch.cat(
        [model(torch.tensor([[*prefix, *text]]) % size).logits[0, len(prefix) :] for text in texts]
    )
    ids_RT = torch.from_numpy(batch.tokens_RT) % size
    stack = Stack(model, batch, ids_RT)
    states_RTD = model.model.norm(stack.through(stack.embedded, range(len(model.model.layers))))
    inputs = model_inputs(batch, model.dtype) | {"input_ids": ids_RT}
    whole_RTD = model.model(**inputs).last_hidden_state
    used = torch.from_numpy(batch.source_RT >= 0)
    gaps = [
        (_log_probs(model.lm_head(states[used])) - _log_probs(own)).abs().max()
        for states in (states_RTD, whole_RTD)
    ]
    return float(max(gaps))


def _log_probs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), -1)


def _demand_parts(model: Any) -> None:
    body: Any = getattr(model, "model", None)
    missing = [part for part in PARTS if not hasattr(body, part)]
    if (
        missing
        or not hasattr(body.layers[0], "mlp")
        or not hasattr(body.layers[0].mlp, "down_proj")
    ):
        raise StageError(
            f"{type(model).__name__} cannot be cut into a student",
            details=[f"missing: {', '.join(missing) or 'mlp.down_proj'}"],
            hint=USE,
        )


class Stack:
    """The layers of one model over one batch of packed sequences.

    Attributes:
        embedded: the states before the first layer, (R, T, D).
    """

    def __init__(self, model: Any, batch: Packed, ids_RT: Tensor | None = None) -> None:
        """Embed the batch, or `ids_RT` in the place of its tokens."""
        self.body = model.model
        inputs: dict[str, Any] = model_inputs(batch, model.dtype)
        self._mask = inputs["attention_mask"]
        ids_RT = inputs["input_ids"] if ids_RT is None else ids_RT
        self.embedded: Tensor = self.body.embed_tokens(ids_RT)
        self._angles = self.body.rotary_emb(self.embedded, inputs["position_ids"])

    def through(self, hidden_RTD: Tensor, layers: Sequence[int]) -> Tensor:
        """The states after these layers, in order."""
        for layer in layers:
            hidden_RTD = self.apply(self.body.layers[layer], hidden_RTD)
        return hidden_RTD

    def apply(self, layer: Any, hidden_RTD: Tensor) -> Tensor:
        """The states after one layer, which need not be one of the model's."""
        out = layer(hidden_RTD, attention_mask=self._mask, position_embeddings=self._angles)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result
