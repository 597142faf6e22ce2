"""A model on its way to other processes through Ray's object store."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import nn  # noqa: E402

from overproof.teacher.forward import LINE_BYTES  # noqa: E402


@dataclass(frozen=True)
class Frozen:
    """A model on its way through the object store, whose readers share its memory.

    Attributes:
        skeleton: the model with parameters that have a shape and no values.
        values: of all of them, one after another, each on a line of its own.
    """

    skeleton: Any
    values: NDArray[np.uint8]

    @classmethod
    def of(cls, model: Any) -> Frozen:
        """Copy the values out of a model."""
        named = list(model.named_parameters())
        memo: dict[int, Any] = {
            id(one): nn.Parameter(torch.empty_like(one, device="meta"), requires_grad=False)
            for _, one in named
        }
        places, size = _places(model)
        values = np.zeros(size, np.uint8)
        for name, one in named:
            raw = one.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            values[places[name] : places[name] + len(raw)] = raw
        return cls(copy.deepcopy(model, memo), values)

    def thawed(self) -> Any:
        """The model, on the same memory."""
        places, _ = _places(self.skeleton)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nobody may write to it, which nobody does
            values = torch.from_numpy(self.values)
        real = {}
        for name, one in self.skeleton.named_parameters():
            raw = values[places[name] : places[name] + one.numel() * one.element_size()]
            real[id(one)] = nn.Parameter(raw.view(one.dtype).view(one.shape), requires_grad=False)
        for module in self.skeleton.modules():
            for name, one in module._parameters.items():
                if one is not None:
                    module._parameters[name] = real[id(one)]
        return self.skeleton


def _places(model: Any) -> tuple[dict[str, int], int]:
    """Where each parameter begins, and where the last ends; bytes."""
    places, end = {}, 0
    for name, one in model.named_parameters():
        places[name] = end
        end += math.ceil(one.numel() * one.element_size() / LINE_BYTES) * LINE_BYTES
    return places, end
