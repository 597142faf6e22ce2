"""The type that a trained student's weights are written in."""

from __future__ import annotations

from typing import Any

import torch


def rounded(model: Any) -> Any:
    """The model itself with its parameters in bf16, but for those that transformers keeps in fp32.

    DeepSeek V4 names its hyper-connections, norms and sinks as such; most architectures name none.
    Buffers stay as they are: among them are biases and tables of routers.
    """
    exact = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in exact):
            parameter.data = parameter.data.to(torch.bfloat16)
    return model
