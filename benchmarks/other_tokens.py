"""A student with other tokens than its teacher: aligned distributions against the text alone.

    python benchmarks/other_tokens.py RUN [--tokens 8192] [--layers 10] [--steps 200]

RUN is the folder of a finished run (`out/demo`): its teacher's answers and signals are used again.
There are few small models with other tokens, so one is made: a byte-level BPE is trained on the
run's own training prompts, and the teacher's body gets an embedding for it, each row the mean of
the rows of the pieces that the teacher cuts the token into. Its chat template and control tokens
are its own too. Of this base the student is cut. Three arms then train from the same weights, for
equal steps: by the aligned distributions in prompts and answers, by the same in the answers alone,
and by cross-entropy on the same text (sequence-level distillation).
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402
from tokenizers import (  # noqa: E402
    Tokenizer,
)
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from _finished import Finished, finished  # noqa: E402
from _results import keep  # noqa: E402
from overproof.core import artifact  # noqa: E402
from overproof.core.artifact import Artifact, Resource  # noqa: E402
from overproof.core.config import with_overrides  # noqa: E402
from overproof.core.console import meter, note  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.data import dataset  # noqa: E402
from overproof.data.records import lone_prompt  # noqa: E402
from overproof.release.foreign import evaluate_foreign  # noqa: E402
from overproof.student import arms, initial  # noqa: E402
from overproof.student.across import align  # noqa: E402
from overproof.student.align import Side  # noqa: E402
from overproof.student.common import Common  # noqa: E402
from overproof.student.examples import TrainSet, build_train_set  # noqa: E402
from overproof.student.retokenise import Both, retokenise, side_of  # noqa: E402
from overproof.student.scratch import make_tokenizer  # noqa: E402
from overproof.student.train import train  # noqa: E402
from overproof.teacher.answers import made_of  # noqa: E402
from overproof.teacher.cache import SignalCache  # noqa: E402
from overproof.teacher.local import Teacher, load  # noqa: E402
from overproof.teacher.signals import answer_rows  # noqa: E402
from overproof.teacher.tokens import byte_level  # noqa: E402

# name: the teacher's token whose embedding it gets
CONTROL = {"<bos>": "<|im_start|>", "<eot>": "<|im_end|>", "<user>": "user", "<model>": "assistant"}
TEMPLATE = (
    "<bos>{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}\n\n{% elif "
    "m['role'] == 'user' %}<user>{{ m['content'] }}{% else %}<model>{{ m['content'] }}<eot>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
ALIGNED, ANSWERS, TEXT = "aligned", "aligned, answers alone", "text alone"


def main() -> None:
    """Measure, print, and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192, help="of the base's vocabulary")
    parser.add_argument("--layers", type=int, default=10, help="of the student")
    parser.add_argument("--steps", type=int, default=200, help="of each arm")
    parser.add_argument("--prompts", type=int, help="of the held-out ones; all by default")
    parser.add_argument("--keep", default="other_tokens", help="name of the result's file")
    run = finished(parser)
    numbers = {"recipe": run.recipe.name, "temperature": run.recipe.sample.temperature}
    numbers |= {name: getattr(run.given, name) for name in ("tokens", "layers", "steps")}
    print(json.dumps(keep(run.given.keep, numbers | compare(run)), indent=2))


def compare(run: Finished) -> dict[str, Any]:
    """Make a base, cut a student, train and measure each arm."""
    given, teacher = run.given, run.teacher()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = transplant(teacher, texts_of(run), given.tokens, folder / "base")
        wanted = [
            f"student.base={folder / 'base'}",
            f"student.layers={given.layers}",
            f"student.vocabulary={given.tokens}",
            f"train.steps={given.steps}",
            "student.importance=even",  # the arms share their start; measuring layers takes long
        ]
        recipe = with_overrides(run.recipe, [*wanted, "student.budget=null"])
        samples, signals, told, start = stages(run, teacher, base, recipe, folder / "stages")
        begun = initial.load(start.path)
        both = Both.read(samples, told, begun.vocabulary)
        found = {"alignment": alignment(both, begun)}
        trained = {"untrained": begun.model}
        for name, data in sets(both, begun, samples, signals, recipe).items():
            trained[name] = copy.deepcopy(begun.model)
            data(folder / name)
            with meter(name, recipe.train.steps, "steps") as bar:
                train(
                    trained[name], folder / name, recipe.train, recipe.seed,
                    folder / f"{name} scratch", bar,
                )  # fmt: skip
        return found | {"arms": measure(run, teacher, both, begun, trained, recipe)}


def stages(
    run: Finished, teacher: Teacher, base: Teacher, recipe: Recipe, store: Path
) -> tuple[Artifact, Artifact, Artifact, Artifact]:
    """The run's own samples and signals; the answers in the base's tokens; the student."""
    samples, signals, train, heldout = (
        artifact.load(run.stages / name) for name in ("samples", "signals", "train", "heldout")
    )
    store.mkdir()
    told = retokenise(
        lambda: teacher,
        lambda: base,
        samples,
        signals,
        {"train": train, "heldout": heldout},
        {"teacher": teacher.resource, "base": base.resource},
        recipe,
        store,
    )
    return (
        samples,
        signals,
        told,
        initial.initial(lambda: base, told, None, recipe, base.resource, store),
    )


def sets(
    both: Both, start: initial.Initial, samples: Artifact, signals: Artifact, recipe: Recipe
) -> dict[str, Callable[[Path], TrainSet]]:
    """What each arm trains on, written when it is asked for."""
    binding, vocabulary = made_of(samples, recipe), start.vocabulary
    only = answer_rows(both.heard.train) if recipe.signals.prompts else None
    alone = recipe.signals.model_copy(update={"prompts": False})
    bare = recipe.model_copy(update={"signals": alone})

    def aligned(folder: Path) -> TrainSet:
        return arms.cell_set(folder, both, vocabulary, SignalCache(signals.path, binding), recipe)

    def answers(folder: Path) -> TrainSet:
        cache = SignalCache(signals.path, binding, only)
        return arms.cell_set(folder, both, vocabulary, cache, bare)

    def text(folder: Path) -> TrainSet:
        return build_train_set(folder, both.told.student_prefix, both.told.train, vocabulary, None)

    return {ALIGNED: aligned, ANSWERS: answers, TEXT: text}


def measure(
    run: Finished,
    teacher: Teacher,
    both: Both,
    start: initial.Initial,
    trained: dict[str, Any],
    recipe: Recipe,
) -> dict[str, Any]:
    """Each arm on the held-out answers, and `aligned` less each other."""
    heard, told = (
        replace(side, heldout=side.heldout[: run.given.prompts]) for side in (both.heard, both.told)
    )
    both = replace(both, heard=heard, told=told)
    named = {"student" if name == ALIGNED else name: model for name, model in trained.items()}
    with meter("evaluating", len(both.heard.heldout), "prompts") as bar:
        return evaluate_foreign(
            teacher.model, both, start.vocabulary, named, recipe.evaluate, seed=recipe.seed,
            length=recipe.train.sequence_length, meter=bar,
        )  # fmt: skip


def alignment(both: Both, start: initial.Initial) -> dict[str, Any]:
    """How the two texts of the training answers fit, in counts."""
    common = Common.of(both.teacher, both.student)
    counts = Counter[str](cells=common.cells, own_tokens=common.cell_V.size)
    for heard, told in zip(both.heard.train, both.told.train, strict=True):
        one = align(heard, told, "", both, start.vocabulary, prompts=False)
        counts["teacher_tokens"] += len(heard.answer)
        counts["student_tokens"] += len(one.learned)
        counts["shared_places"] += len(one.places)
        for place in one.places:
            counts["one_to_one"] += place.whole and len(place.said) == 1
            counts["joined"] += place.whole and len(place.said) > 1
            counts["apart"] += int(common.cell_U[place.said[0]] != common.cell_V[place.own])
    return dict(counts)


def texts_of(run: Finished) -> list[str]:
    """The prompts that the run was certified to train on."""
    rows = dataset.rows(artifact.load(run.stages / "train"))
    return [text for row in rows if (text := lone_prompt(row.record.messages)) is not None]


def transplant(teacher: Teacher, texts: Iterable[str], size: int, folder: Path) -> Teacher:
    """The teacher's body with a tokenizer of its own, saved and read as any base is."""
    made = make_tokenizer(texts, size, list(CONTROL))
    note(f"a tokenizer of {made.get_vocab_size():,} tokens")
    own, theirs = side_of_tokenizer(made), side_of(teacher)
    table = teacher.model.get_input_embeddings().weight.detach()
    rows = torch.zeros(own.rows, table.shape[1])
    for number, raw in own.bytes_of.items():
        pieces = list(theirs.pieces(raw)) if raw else []
        if name := CONTROL.get(made.id_to_token(number) or ""):
            pieces = [teacher.tokenizer.convert_tokens_to_ids(name)]
        rows[number] = table[pieces].mean(0) if pieces else table.mean(0)
    ids = {name: made.token_to_id(name) for name in ("<bos>", "<eot>")}
    config = copy.deepcopy(teacher.model.config)
    config.vocab_size = own.rows
    config.bos_token_id, config.eos_token_id = ids["<bos>"], ids["<eot>"]
    config.pad_token_id = ids["<eot>"]
    model = LlamaForCausalLM(config)
    body = {name: one for name, one in teacher.model.state_dict().items() if "embed" not in name}
    body.pop("lm_head.weight", None)
    model.load_state_dict(body, strict=False)
    model.get_input_embeddings().weight.data.copy_(rows)
    model.tie_weights()
    model.generation_config.eos_token_id = ids["<eot>"]
    model.save_pretrained(folder)
    names = {"bos_token": "<bos>", "eos_token": "<eot>", "pad_token": "<eot>"}
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        **names,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    read = load(str(folder))
    resource = Resource("base", "transplanted", "file:transplanted", read.resource.sha256)
    return Teacher("transplanted", resource, read.model, read.tokenizer)


def side_of_tokenizer(made: Tokenizer) -> Side:
    """A tokenizer that has no model yet."""
    return Side.of(made, byte_level(made), [made.get_vocab()["<eot>"]])


if __name__ == "__main__":
    main()
