"""A model's parameters side by side in one block of shared memory: those that learn, or the others.

Adjacent matrices of equal width can then be used as one, and a whole model's gradients are one
vector. The order is that of `named_parameters`, where tied weights stand once.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor


class Flat:
    """One vector with a named part for each parameter.

    Attributes:
        vector: all values, in shared memory.
        places: for each name its first element and its shape.
    """

    def __init__(self, model: Any, dtype: torch.dtype, *, learned: bool = True) -> None:
        self.places: dict[str, tuple[int, torch.Size]] = {}
        end = 0
        for name, parameter in model.named_parameters():
            if parameter.requires_grad is not learned:
                continue
            self.places[name] = (end, parameter.shape)
            end += parameter.numel()
        self.vector = torch.zeros(end, dtype=dtype).share_memory_()

    def view(self, name: str) -> Tensor:
        """The part of one parameter, in its shape."""
        start, shape = self.places[name]
        part: Tensor = self.vector[start : start + math.prod(shape)].view(shape)
        return part

    def joined(self, names: list[str]) -> Tensor:
        """Adjacent matrices of equal width as one, their rows one after another."""
        start, shape = self.places[names[0]]
        rows = 0
        for name in names:
            place, size = self.places[name]
            if place != start + rows * shape[1] or size[1] != shape[1]:
                raise ValueError(f"{name} does not follow {names[0]} in memory")
            rows += size[0]
        matrix: Tensor = self.vector[start : start + rows * shape[1]].view(rows, shape[1])
        return matrix

    def sha256(self) -> str:
        """SHA-256 of all values, in their order and the machine's byte order."""
        return hashlib.sha256(memoryview(self.vector.view(torch.uint8).numpy())).hexdigest()

    def adopt(self, model: Any) -> None:
        """Copy the model's parameters of these names here, and make them views of this memory."""
        with torch.no_grad():
            for name in self.places:
                parameter = model.get_parameter(name)
                view = self.view(name)
                view.copy_(parameter)
                parameter.data = view
