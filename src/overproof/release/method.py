"""How a student was made, in sentences for its report and its card."""

from __future__ import annotations

from overproof.core import methods
from overproof.core.artifact import Json
from overproof.core.config import Recipe, TrainConfig


def sentences(
    recipe: Recipe, drawn: Json, initial: Json, base: str | None = None
) -> tuple[str, ...]:
    """What the teacher gave, what the student is, how it learned.

    Args:
        drawn: facts of the stage `samples`. initial: facts of the stage `initial`.
        base: name of what the student was cut from; None: the teacher.
    """
    sample, train, student = recipe.sample, recipe.train, recipe.student
    widths = [
        f"{number:,} {of}"
        for number, whole, of in (
            (student.hidden, initial["base"]["hidden"], "channels of its states"),
            (student.kv_heads, initial["base"]["kv_heads"], "groups of heads a layer"),
            (student.mlp_width, initial["base"]["mlp_width"], "units in each MLP"),
        )
        if number not in (None, whole)
    ]
    narrow = "its full width" if not widths else ", ".join(widths)
    layers, every = len(initial["kept_layers"]), initial["base"]["layers"]
    repaired = (
        "; the layers that stay were refitted in closed form to bridge the gaps"
        if layers < every or widths
        else ""
    )
    chosen = f"{layers} layers ({student.importance})" if layers < every else f"all {every} layers"
    where = (
        " It learned at every position of prompts and answers; a control arm learns at the "
        "answers' alone, for the prompts are not the teacher's text."
        if recipe.signals.prompts
        else ""
    )
    return (
        f"The teacher gave {drawn['answers']:,} answers to {drawn['prompts']:,} certified prompts "
        f"at temperature {sample.temperature:g}, from its {sample.top_k} most likely tokens and "
        f"the likeliest {sample.top_p:.0%} of their mass, {sample.max_new_tokens} tokens at most. "
        f"{kept(recipe.signals)}",
        f"The student is {base or 'the teacher'} with {chosen}, {narrow} "
        f"and {initial['vocabulary']:,} tokens of its vocabulary, every byte among them{repaired}.",
        f"It was trained for {train.steps:,} steps of {train.sequences} packed sequences of "
        f"{train.sequence_length} tokens by {divergence(train.divergence)} over the cached "
        f"distributions, with {train.optimizer} at a peak rate of {train.learning_rate:g}.{where}"
        f"{own_text(train)}",
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
