"""The numbers that a student's shape consists of, and what follows from them alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from overproof.core.sections import StudentConfig


@dataclass(frozen=True)
class Dimensions:
    """A stack of decoder layers with gated MLPs and grouped heads, without biases.

    Attributes:
        kv_heads: groups of heads, each with a key-value head of its own.
        head_width: of queries, keys and values.
        tied: whether the head is the embedding.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Any) -> Self:
        """Those of a configuration of transformers."""
        heads = config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.intermediate_size,
            config.vocab_size,
            bool(getattr(config, "tie_word_embeddings", True)),
        )

    def cut(self, student: StudentConfig) -> Self:
        """Those of a student that is cut from this; what the recipe leaves out stays."""
        kv_heads = student.kv_heads or self.kv_heads
        return replace(
            self,
            layers=student.layers or self.layers,
            hidden=student.hidden or self.hidden,
            heads=self.heads // self.kv_heads * kv_heads,
            kv_heads=kv_heads,
            mlp_width=student.mlp_width or self.mlp_width,
            vocabulary=student.vocabulary,
        )

    @property
    def layer_weights(self) -> int:
        """Elements of the matrices of one layer."""
        attention = 2 * self.head_width * (self.heads + self.kv_heads)
        return self.hidden * (attention + 3 * self.mlp_width)

    @property
    def table(self) -> int:
        """Elements of an embedding."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Of the whole model, norms included, a tied head once."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.layers * self.layer_weights + self.table * (1 if self.tied else 2) + norms

    @property
    def read_weights(self) -> int:
        """Elements of the matrices that every token is multiplied by: the layers and the head."""
        return self.layers * self.layer_weights + self.table
