"""How a student was made, in sentences for its report and its card."""

from __future__ import annotations

from overproof.core import methods
from overproof.core.artifact import Json
from overproof.core.config import Recipe, TrainConfig


def sentences(recipe: Recipe, drawn: Json, initial: Json) -> tuple[str, ...]:
    """What the teacher gave, what the student is, how it learned.

    Args:
        drawn: facts of the stage `samples`. initial: facts of the stage `initial`.
    """
    sample, train, student = recipe.sample, recipe.train, recipe.student
    wide = student.mlp_width
    width = "the teacher's MLPs" if wide is None else f"MLPs of {wide:,} units"
    where = (
        " It learned at every position of prompts and answers; a control arm learns at the "
        "answers' alone, for the prompts are not the teacher's text."
        if recipe.signals.prompts
        else ""
    )
    repaired = "state_error_after_repair" in initial
    after = (
        "; the layers that stay were refitted in closed form to bridge the gaps."
        if repaired
        else f".{fewer_experts(initial)}"
    )
    sequences = "packed sequences" if repaired else "sequences, one answer each,"
    beginnings = "" if sample.words is None else f"(the first {sample.words} words of each) "
    return (
        *own_teacher(recipe),
        f"The teacher gave {drawn['answers']:,} answers to {drawn['prompts']:,} certified prompts "
        f"{beginnings}at temperature {sample.temperature:g}, from its {sample.top_k} most likely "
        f"tokens and the likeliest {sample.top_p:.0%} of their mass, {sample.max_new_tokens} "
        f"tokens at most. {kept(recipe.signals)}",
        f"The student is the teacher with {student.layers} layers ({student.importance}), {width} "
        f"and {initial['vocabulary']:,} tokens of its vocabulary, every byte among them{after}",
        f"It was trained for {train.steps:,} steps of {train.sequences} {sequences} of "
        f"{train.sequence_length} tokens by {divergence(train.divergence)} over the cached "
        f"distributions, with {train.optimizer} at a peak rate of {train.learning_rate:g}.{where}"
        f"{own_text(train)}",
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
        case methods.Exact():
            return (
                f"Its last hidden states at each position of {inside} were cached, from which its "
                f"whole distribution{at} is made again."
            )


def divergence(config: methods.Divergence) -> str:
    """What was made small."""
    match config:
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
