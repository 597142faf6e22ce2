"""A model's layers, run one at a time on fixed inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from overproof.core.errors import StageError
from overproof.data.pack import Packed
from overproof.teacher.forward import model_inputs

PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")


def require_decoder(model: Any) -> None:
    """Refuse a model whose parts are not where this package looks for them.

    Raises:
        StageError: the architecture has no plain stack of decoder layers.
    """
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
            hint="use a teacher built as a stack of decoder layers: Llama, Qwen, Mistral, SmolLM",
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
