"""LoRA (arXiv 2106.09685): low-rank adapters on linear layers learn, and all else stays as it is.

A layer's W x becomes W x + (alpha / rank) B A x. `peft` gives the adapters their form: it puts them
into the model, and what is saved here is what it reads. B begins as zeros, so the first step
starts from the student as it was.

1. `attach` freezes the model and adds the adapters. Training then has gradients, weights in fp32
   and an optimizer's state of these alone.
2. `save` writes them; `merge` adds each product to its weight, and what is left is a plain model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from overproof.core.digest import pretty  # noqa: E402
from overproof.core.errors import UsageError  # noqa: E402
from overproof.core.methods import Lora  # noqa: E402

FOLDER = "adapter"  # a folder of its own: transformers would put one beside the weights onto them
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of names in a file of peft's


def demand(model: Any, config: Lora) -> None:
    """Refuse targets that are no linear layers of this model.

    Args:
        model: the student, or what it is cut from.

    Raises:
        UsageError: one of the targets is not there, or computes more than a product.
    """
    known = targets(model)
    strange = [name for name in config.targets if name not in known]
    if strange:
        raise UsageError(
            f"train.lora.targets names no linear layer of {type(model).__name__}",
            details=[f"got {', '.join(strange)}, wanted some of {', '.join(known)}"],
            hint="leave targets out to adapt all of them",
        )


def targets(model: Any) -> list[str]:
    """Last names of the linear layers before the head, sorted; what else is called so is none."""
    plain, other = set[str](), set[str]()
    for name, part in model.base_model.named_modules():
        last = name.rpartition(".")[2]
        # A class of its own may use its matrix in another way.
        (plain if type(part) is nn.Linear else other).add(last)
    return sorted(plain - other)


def attach(student: Any, config: Lora, seed: int) -> None:
    """Freeze the model, and add an adapter to each target.

    Args:
        seed: of the matrices A.

    Raises:
        UsageError: see `demand`.
    """
    demand(student, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_of_peft(student, config), student)


def _of_peft(model: Any, config: Lora) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or targets(model),
        inference_mode=False,
    )


def save(student: Any, folder: Path) -> None:
    """Write the adapters as peft reads them: for the model that `attach` was given."""
    folder.mkdir(exist_ok=True)
    (given,) = student.peft_config.values()
    # peft writes its targets in the order of a set, which is another one in each process.
    settings = given.to_dict() | {"target_modules": sorted(given.target_modules)}
    settings["inference_mode"] = True
    (folder / CONFIG).write_text(pretty(settings), encoding="utf-8")
    state = get_peft_model_state_dict(student)
    tensors = {f"{PREFIX}{name}": value.contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def merge(student: Any) -> None:
    """Add each adapter's product to its layer's weight, in fp32; a plain model is left."""
    for place, layer in list(adapted(student)):
        layer.merge()
        above, _, name = place.rpartition(".")
        setattr(student.get_submodule(above), name, layer.get_base_layer())
    del student.peft_config
    student.requires_grad_(True)


def adapted(student: Any) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter, by their place."""
    return ((name, part) for name, part in student.named_modules() if isinstance(part, LoraLayer))


def trainable(student: Any) -> int:
    """Parameters that learn."""
    return sum(one.numel() for one in student.parameters() if one.requires_grad)
