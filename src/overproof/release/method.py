"""How a student was made, in sentences for its report and its card."""

from __future__ import annotations

from overproof.core import methods
from overproof.core.artifact import Json
from overproof.core.recipe import Recipe
from overproof.core.sections import TrainConfig


def sentences(
    recipe: Recipe, drawn: Json, initial: Json, base: str | None = None, *, apart: bool = False
) -> tuple[str, ...]:
    """What the teacher gave, what the student is, how it learned.

    Args:
        drawn: facts of the stage `samples`. initial: facts of the stage `initial`.
        base: name of what the student was cut from; None: the teacher.
        apart: whether that has other tokens than the teacher.
    """
    sample, train, student = recipe.sample, recipe.train, recipe.student
    remote = recipe.teacher.endpoint is not None
    drawn_from = (
        f"and top-p {sample.top_p:g}, as the service draws"
        if remote
        else f"from its {sample.top_k} most likely tokens and the likeliest {sample.top_p:.0%} of "
        "their mass"
    )
    widths = [
        f"{number:,} {of}"
        for number, whole, of in (
            (student.hidden, initial["base"].get("hidden"), "channels of its states"),
            (student.kv_heads, initial["base"].get("kv_heads"), "groups of heads a layer"),
            (student.mlp_width, initial["base"].get("mlp_width"), "units in each MLP"),
        )
        if number not in (None, whole)
    ]
    narrow = "its full width" if not widths else ", ".join(widths)
    layers, every = len(initial["kept_layers"]), initial["base"]["layers"]
    chosen = f"{layers} layers ({student.importance})" if layers < every else f"all {every} layers"
    where = (
        " It learned at every position of prompts and answers; a control arm learns at the "
        "answers' alone, for the prompts are not the teacher's text."
        if recipe.signals.prompts and not recipe.by_text
        else ""
    )
    packed = "state_error_after_repair" in initial
    after = f".{fewer_experts(initial)}"
    if packed and (layers < every or widths):
        after = "; the layers that stay were refitted in closed form to bridge the gaps."
    sequences = "packed sequences" if packed else "sequences, one answer each,"
    beginnings = "" if sample.words is None else f"(the first {sample.words} words of each) "
    return (
        *own_teacher(recipe),
        f"The teacher gave {drawn['answers']:,} answers to {drawn['prompts']:,} certified prompts "
        f"{beginnings}at temperature {sample.temperature:g}{' ' if remote else ', '}{drawn_from}, "
        f"{sample.max_new_tokens} tokens at most. {kept(recipe.signals)}"
        f"{several(recipe)}",
        f"The student is {base or 'the teacher'} with {chosen}, {narrow} "
        f"and {initial['vocabulary']:,} tokens of its vocabulary, every byte among them{after}",
        *(other_tokens(recipe) if apart else ()),
        f"It was trained for {train.steps:,} steps of {train.sequences} {sequences} of "
        f"{train.sequence_length} tokens by {objective(recipe)}, with {train.optimizer} at a "
        f"peak rate of {train.learning_rate:g}.{where}"
        f"{adapters(train)}{states(train)}{own_text(train)}{few_bits(train)}",
    )


def routed(recipe: Recipe) -> list[str]:
    """Which records each teacher answers, in words."""
    every = recipe.teacher.routing
    free = [one for one in every if one["records"] is None]
    total = sum(one["weight"] for one in free)
    found = []
    for one in every:
        if one["records"] is not None:
            fields = (f"{name}: {' or '.join(values)}" for name, values in one["records"].items())
            found.append("; ".join(fields))
        elif len(free) == 1:
            found.append("all others")
        else:
            found.append(f"{one['weight'] / total:.0%} of all others")
    return found


def several(recipe: Recipe) -> str:
    """Who taught beside the first teacher."""
    count = 1 + len(recipe.teacher.others)
    if count == 1:
        return ""
    return (
        f" {count} teachers answered, each prompt one of them: chosen by the record's fields, and "
        "among those that may answer drawn by weight."
    )


def other_tokens(recipe: Recipe) -> tuple[str, ...]:
    """How the teacher's tokens and the student's were brought together."""
    said = "The student reads and writes its base's own tokens and chat template, not the teacher's"
    if recipe.by_text:
        return (f"{said}; the teacher's answers were written in these.",)
    return (
        f"{said}: both texts were aligned by their bytes. Where both have a boundary, it learned "
        "the teacher's distribution over what the two vocabularies have in common, its own next "
        "token among it with the probability that the teacher's tokens there have one after "
        "another; inside the teacher's tokens it learned the text.",
    )


def own_teacher(recipe: Recipe) -> tuple[str, ...]:
    """Where the teacher comes from, if the run made it."""
    made = recipe.teacher.scratch
    if made is None:
        return ()
    return (
        f"The teacher was trained from scratch, by cross-entropy for {made.steps:,} steps of "
        f"{made.sequences} records, on certified records alone; it goes on with text.",
    )


def fewer_experts(initial: Json) -> str:
    """What became of a mixture's experts, if there are fewer."""
    found = initial.get("experts")
    if found is None:
        return ""
    spare = {"drop": "left out", "merge": "averaged into those, weighted by use"}[found["spare"]]
    kept, all_of_them = len(found["kept"][0]), len(found["mass"][0])
    return (
        f" Of the {all_of_them} routed experts of each layer the {kept} stayed that the routers "
        f"gave most weight on the teacher's text; the others were {spare}."
    )


def adapters(train: TrainConfig) -> str:
    """Whether it learned by adapters alone."""
    lora = train.lora
    if lora is None:
        return ""
    where = ", ".join(lora.targets) or "all linear layers before the head"
    return (
        f" What learned were low-rank adapters (LoRA, rank {lora.rank}, alpha {lora.alpha:g}) on "
        f"{where}; every other weight stayed as it was, and in the end they were merged into it."
    )


def states(train: TrainConfig) -> str:
    """Whether its hidden states were drawn towards the teacher's."""
    if train.hidden is None:
        return ""
    return (
        " Its last hidden states were drawn towards the teacher's as well, through a learned "
        f"projection that is not part of it, with a weight of {train.hidden.weight:g}."
    )


def few_bits(train: TrainConfig) -> str:
    """Whether it learned for a build of few bits."""
    quantize = train.quantize
    if quantize is None:
        return ""
    since = f"After the first {quantize.start:.0%} of the steps" if quantize.start else "Always"
    return (
        f" {since} it computed with the weights of the build gguf-{quantize.format}, rounded anew "
        "in every step, so that the build keeps what was learned."
    )


def objective(recipe: Recipe) -> str:
    """What was made small, and over what."""
    if not recipe.by_text:
        return f"{divergence(recipe.train.divergence)} to the teacher's cached distributions"
    return f"cross-entropy on the teacher's {'checked answers' if recipe.solving else 'text'}"


def control(recipe: Recipe) -> str:
    """The same of the control arm."""
    return f"cross-entropy on the teacher's {'unchecked answers' if recipe.solving else 'text'}"


def own_text(train: TrainConfig) -> str:
    """What it learned from its own answers, if it did."""
    policy = train.on_policy
    if policy is None:
        return ""
    since = f" after the first {policy.warm_start:.0%}" if policy.warm_start else ""
    mass = "" if policy.top_p == 1.0 else f" and from the likeliest {policy.top_p:.0%} of the mass"
    return (
        f" {train.own_steps:,} of the steps{since} learned from the student's own answers to the "
        f"same prompts instead, drawn at temperature {policy.temperature:g}{mass} for "
        f"{policy.ahead} such steps at a time, by {divergence(policy.divergence)} to the teacher's "
        "whole distribution."
    )


def kept(signals: methods.Signals) -> str:
    """What was cached of the teacher's distributions."""
    inside = "its answers, and inside the prompts," if signals.prompts else "its answers"
    at = "" if signals.temperature == 1.0 else f" at temperature {signals.temperature:g}"
    match signals:
        case methods.Sampled(draws=draws):
            return (
                f"At each position of {inside} {draws} tokens drawn from its whole "
                f"distribution{at} were cached."
            )
        case methods.TopK(top_k=top, tail_draws=draws):
            tail = f", and {draws} tokens drawn from these by their probability" if draws else ""
            return (
                f"Its {top} most likely tokens at each position of {inside} were cached with "
                f"their log-probabilities{at}, the mass of all others{tail}."
            )
        case methods.Text():
            return "Of its distributions nothing was kept."
        case methods.Exact():
            return (
                f"Its last hidden states at each position of {inside} were cached, from which its "
                f"whole distribution{at} is made again."
            )


def divergence(config: methods.Objective) -> str:
    """What was made small."""
    match config:
        case methods.CrossEntropy():
            return "cross-entropy"
        case methods.ForwardKl():
            return "forward KL"
        case methods.ReverseKl():
            return "reverse KL"
        case methods.Jsd(beta=beta):
            return f"the generalised Jensen-Shannon divergence (beta {beta:g})"
        case methods.SkewKl(alpha=alpha):
            return f"skew KL (alpha {alpha:g})"
        case methods.SkewReverseKl(alpha=alpha):
            return f"skew reverse KL (alpha {alpha:g})"
        case methods.AlphaBeta(alpha=alpha, beta=beta):
            return f"the alpha-beta divergence ({alpha:g}, {beta:g})"
