"""One training by TRL, in a process of its own: started by `_peers.py`, not by hand.

Nothing of Overproof is set up here but the optimizer and its learning rates, so that both are
those of our trainer.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from overproof.core.sections import TrainConfig
from overproof.student.optimizer import optimizers, rate


class Ends(TrainerCallback):  # type: ignore[misc]
    """When each step was over."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """See `TrainerCallback`."""
        self.ends.append(time.perf_counter() - self.began)


class GivenText(DistillationTrainer):  # type: ignore[misc]
    """The stable trainer off-policy: what it would let the student say is given instead.

    It knows no other way: its own text is all that it trains on. Loss and passes are its own.
    """

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        rows = [self.train_dataset[int(number)] for number in prompts]
        asked = [row["input_ids"][: row["prompt_tokens"]] for row in rows]
        said = [row["input_ids"][row["prompt_tokens"] :] for row in rows]
        return asked, said, None, None, []


def main() -> None:
    """Train as the job says, and write when each step ended."""
    job = json.loads(Path(sys.argv[1]).read_bytes())
    torch.set_num_threads(job["threads"])
    config = TrainConfig.model_validate(job["train"])
    student = AutoModelForCausalLM.from_pretrained(job["student"], dtype=torch.float32)
    trainer = _trainer(job, student, config)
    ends = Ends()
    trainer.add_callback(ends)
    trainer.train()
    if trainer.accelerator.is_main_process:
        student.save_pretrained(job["save"])
        Path(job["answer"]).write_text(json.dumps(ends.ends), encoding="utf-8")


def _trainer(job: dict[str, Any], student: Any, config: TrainConfig) -> Any:
    (optimizer,) = optimizers(config, list(student.named_parameters()))
    schedule = LambdaLR(optimizer, lambda step: rate(config, step) / config.learning_rate)
    common = {
        "model": student,
        "teacher_model": AutoModelForCausalLM.from_pretrained(job["teacher"], dtype="auto"),
        "processing_class": AutoTokenizer.from_pretrained(job["tokenizer"]),
        "optimizers": (optimizer, schedule),
    }
    rows = json.loads(Path(job["rows"]).read_bytes())[: config.steps * job["batch"]]
    if job["trainer"] == "gkd":
        args = GKDConfig(lmbda=0.0, beta=0.0, temperature=1.0, **_arguments(job, config))
        return GKDTrainer(args=args, train_dataset=Dataset.from_list(_masked(rows)), **common)
    numbered = [{"prompt": str(number), **row} for number, row in enumerate(rows)]
    args = DistillationConfig(beta=0.0, shuffle_dataset=False, **_arguments(job, config))
    return GivenText(args=args, train_dataset=Dataset.from_list(numbered), **common)


def _arguments(job: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """What both trainers are told: nothing that costs time and is not training."""
    return {
        "output_dir": str(Path(job["answer"]).parent / "trl"),
        "use_cpu": True,
        "bf16": job["bf16"],
        "ddp_backend": "gloo" if job["processes"] > 1 else None,
        "per_device_train_batch_size": job["micro"],
        "gradient_accumulation_steps": job["accumulation"],
        "num_train_epochs": 1,
        "max_grad_norm": config.clip,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job["seed"],
    }


def _masked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the form that the collator of GKD takes without cutting text into tokens again."""
    found = []
    for row in rows:
        asked = row["prompt_tokens"]
        mask = [0] * asked + [1] * (len(row["input_ids"]) - asked)
        found.append({"prompt": "", "input_ids": row["input_ids"], "completion_mask": mask})
    return found


if __name__ == "__main__":
    main()
