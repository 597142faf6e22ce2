"""Reading a GGUF file once while it is loaded.

transformers reads a file's metadata for the configuration, for the weights and for the tokenizer
each, a hundred thousand tokens and merges one by one, and makes the map of its tensors' names anew
for every module of the model: two thirds of the seconds that a small model takes to load.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import gguf

REPEATED = ("GGUFReader", "get_tensor_name_map")  # what transformers calls again and again


@contextmanager
def read_once() -> Iterator[None]:
    """Let both of `REPEATED` give what they gave before to the same arguments, within the block.

    The file must not change meanwhile.
    """
    before = {name: getattr(gguf, name) for name in REPEATED}
    for name, function in before.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(gguf, name, function)
