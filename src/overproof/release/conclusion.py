"""Did distillation help? The answer that the measured intervals allow, and no more.

What is random in a difference is the choice of prompts, and where the arms were trained several
times the order of the training data. Each has an interval of its own; a lead is one only where both
leave out zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from overproof.release.facts import ReportFacts
from overproof.release.figures import Arm, Control, Evaluation, Interval, Run
from overproof.release.metrics import METRICS, SOLVED, Metric
from overproof.release.words import duration

Order = Literal["better", "worse", "unclear"]
Outcome = Literal["helped", "hurt", "mixed", "not shown", "not measured"]

PROBLEMS = ". It does not count: how many problems are solved is another question than closeness"
CLOSENESS = (
    ". It does not count: the student learned to solve problems, and its teacher's mistakes are "
    "no aim"
)
BELOW = (
    ". It does not count: one of the two is below the teacher's own perplexity, and lower is then "
    "no longer closer"
)
SHARPENED = (
    ". It does not count: answers drawn at temperature {temperature:g} and top-p {top_p:g}{cut} "
    "reward a model that is sharper than its teacher"
)


@dataclass(frozen=True)
class Comparison:
    """The student against another arm by one metric.

    Attributes:
        difference: the student less the other arm, paired prompt by prompt.
        objection: why it says nothing on closeness to the teacher, empty if it does; see `compare`.
        over_seeds: the same difference paired seed by seed, where there are several.
        seeds: how many.
    """

    metric: Metric
    student: Interval
    other: Interval
    difference: Interval
    objection: str = ""
    over_seeds: Interval | None = None
    seeds: int = 1

    @property
    def order(self) -> Order:
        """Better or worse only where the intervals of the paired difference leave out zero.

        Both arms answer the same prompts. Their own intervals hold the spread of the prompts
        twice, and may overlap where prompt after prompt one arm is ahead. Over seeds it must lie
        on the same side.
        """
        every = [self.difference, *([self.over_seeds] if self.over_seeds else [])]
        if all(one.high < 0 for one in every):
            return "worse" if self.metric.higher_is_better else "better"
        if all(one.low > 0 for one in every):
            return "better" if self.metric.higher_is_better else "worse"
        return "unclear"

    @property
    def amount(self) -> str:
        """How far apart the two are: over all seeds, with half of the wider interval."""
        every = [self.difference, *([self.over_seeds] if self.over_seeds else [])]
        margin = max((one.high - one.low) / 2 for one in every)
        return self.metric.amount(every[-1].value, margin)

    def sentence(self, other: str) -> str:
        """The comparison in words."""
        numbers = (
            f"{self.metric.show(self.student)} against {self.metric.show(self.other)}, "
            f"prompt by prompt {self.metric.change(self.difference)}"
        )
        holds = "that interval holds"
        if self.over_seeds:
            numbers += f", over {self.seeds} seeds {self.metric.change(self.over_seeds)}"
            holds = "one of these two intervals holds"
        ending = {
            "better": f"the student is better than {other}",
            "worse": f"the student is worse than {other}",
            "unclear": f"{holds} zero, so no difference is shown",
        }[self.order]
        label = self.metric.label[0].upper() + self.metric.label[1:]
        return f"{label}: {numbers}; {ending}{self.objection}."


@dataclass(frozen=True)
class Conclusion:
    """Whether distillation helped.

    Attributes:
        outcome: `helped` or `hurt` where at least one metric differs and none contradicts it,
            `mixed` where two contradict, `not shown` where no metric differs or the student is no
            nearer to the teacher than before training, `not measured` without a control arm.
        headline: the answer in a sentence.
        sentences: its grounds, one for each comparison, and what qualifies them.
    """

    outcome: Outcome
    headline: str
    sentences: tuple[str, ...]


def compare(
    student: Arm,
    other: Arm,
    difference: Arm,
    teacher: Arm,
    evaluation: Evaluation,
    over: tuple[Arm, int] | None = None,
) -> tuple[Comparison, ...]:
    """The student against another arm, by every metric that both have.

    Perplexity of the teacher's text is least for the distribution that the text was drawn from.
    That is the teacher's only if it was drawn as it is, at temperature 1; and even then lower
    means closer only down to the teacher's own. Elsewhere it is shown and does not count.

    Args:
        over: the difference over several seeds, and how many.
    """
    found = []
    for metric in METRICS:
        mine, theirs, own = metric.of(student), metric.of(other), metric.of(teacher)
        change = metric.of(difference)
        if mine is None or theirs is None or change is None:
            continue
        objection = ""
        if (metric.field == SOLVED) != evaluation.solving:
            objection = CLOSENESS if evaluation.solving else PROBLEMS
        elif metric.field == "perplexity" and not evaluation.as_is:
            cut = "" if evaluation.top_k is None else f" from {evaluation.top_k} tokens"
            objection = SHARPENED.format(**vars(evaluation), cut=cut)
        elif metric.field == "perplexity" and own and min(mine.value, theirs.value) < own.value:
            objection = BELOW
        several = (metric.of(over[0]), over[1]) if over else (None, 1)
        found.append(Comparison(metric, mine, theirs, change, objection, *several))
    return tuple(found)


def _against(facts: ReportFacts, name: str, other: Arm | None) -> tuple[Comparison, ...]:
    difference = facts.differences.get(name)
    if other is None or difference is None:
        return ()
    seeds = facts.seeds
    over = (seeds.differences[name], seeds.count) if seeds and name in seeds.differences else None
    return compare(facts.student, other, difference, facts.teacher, facts.evaluation, over)


def outcome(comparisons: tuple[Comparison, ...]) -> Outcome:
    """What several comparisons say together."""
    orders = {comparison.order for comparison in comparisons if not comparison.objection}
    if not orders:
        return "not measured"
    if {"better", "worse"} <= orders:
        return "mixed"
    if "better" in orders:
        return "helped"
    return "hurt" if "worse" in orders else "not shown"


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """What the outcomes against several control arms say: it helped if it did against each."""
    found = {one for one in outcomes if one != "not measured"}
    if not found:
        return "not measured"
    if "mixed" in found or {"helped", "hurt"} <= found:
        return "mixed"
    if found == {"helped"}:
        return "helped"
    return "hurt" if "hurt" in found else "not shown"


HEADLINES: dict[Outcome, str] = {
    "helped": "Distillation helped by {better}: learning from the teacher's distribution "
    "brought the student closer to the teacher than equal training on the teacher's text alone.",
    "hurt": "Distillation did not help: equal training on the teacher's text alone brought the "
    "control arm closer to the teacher, by {worse}.",
    "mixed": "Mixed: the student is better than the control arm by {better}, and worse by {worse}.",
    "not shown": "Not shown: student and control arm cannot be told apart on these prompts, so "
    "this run gives no evidence that distillation helped.",
    "not measured": "Not measured: without a control arm this report cannot say whether "
    "distillation helped.",
}
SEVERAL: dict[Outcome, str] = {
    "helped": "Distillation helped against every control arm",
    "hurt": "Distillation did not help",
    "mixed": "Mixed",
    "not shown": "Not shown against every control arm",
    "not measured": "Not measured",
}
EACH: dict[Outcome, str] = {
    "helped": "against the {name} it helped by {better}",
    "hurt": "against the {name} it did not help, which is ahead by {worse}",
    "mixed": "against the {name} it is better by {better}, and worse by {worse}",
    "not shown": "from the {name} it cannot be told apart",
    "not measured": "the {name} was not measured",
}


SOLVING: dict[Outcome, str] = {
    "helped": "Checking helped by {better}: learning from right answers alone made the student "
    "solve more problems than equal training on all of the teacher's answers.",
    "hurt": "Checking did not help: equal training on all of the teacher's answers made the "
    "control arm solve more problems, by {worse}.",
    "mixed": "",  # one measure cannot contradict itself
    "not shown": "Not shown: student and control arm cannot be told apart on these problems, so "
    "this run gives no evidence that checking the answers helped.",
    "not measured": "Not measured: without a control arm, or a check for each held-out problem, "
    "this report cannot say whether checking the answers helped.",
}
AGAINST_THE_TEACHER: dict[Order, str] = {
    "better": "It solves more of these problems than its teacher.",
    "worse": "It solves fewer of these problems than its teacher.",
    "unclear": "It cannot be told apart from its teacher in how many of these problems it solves.",
}
# A control arm can end below its start. To be ahead of it is then no gain.
IN_VAIN = "Not shown: training did not make the student better than it was, though {lead}."
TRAINING: dict[Outcome, str] = {
    "helped": "Training itself helped: the student is better than before training.",
    "hurt": "Training itself did harm: the student is worse than before training.",
    "mixed": "Against its own start the student is better by one measure, worse by another.",
    "not shown": "Training itself shows no effect: the student is not told apart from its start.",
    "not measured": "The untrained student was not measured.",
}


def conclude(facts: ReportFacts) -> Conclusion:
    """Judge the student against each control arm, then against its own start.

    1. Compare with a control arm by every metric; the outcome is what they say together. Say what
       both arms had: steps, tokens and seconds.
    2. What is said of all control arms is the least that is true against each.
    3. Compare with the untrained student: a training that changed nothing has not helped.
    4. Where problems are to be solved, compare with the teacher.
    """
    sentences: list[str] = []
    # 1.
    against = [(one, _against(facts, one.name, one.quality)) for one in facts.controls]
    for control, found in against:
        sentences += [one.sentence(f"the {control.words}") for one in found]
        if found:
            sentences.append(_budget(facts.training, control))
    if facts.seeds and against:
        sentences.append(OVER_SEEDS.format(count=facts.seeds.count))
    # 2.
    result = together(outcome(found) for _, found in against)
    headline = _headline(facts, against, result)
    # 3.
    since = outcome(_against(facts, "untrained", facts.untrained))
    sentences.append(TRAINING[since])
    if result == "helped" and since in ("hurt", "not shown"):
        result, headline = "not shown", IN_VAIN.format(lead=_leads(against))
    # 4.
    if facts.evaluation.solving:
        lead = [one for one in _against(facts, "teacher", facts.teacher) if not one.objection]
        sentences += [one.sentence("the teacher") for one in lead]
        headline = " ".join([headline, *(AGAINST_THE_TEACHER[one.order] for one in lead)])
    return Conclusion(result, headline, tuple(sentences))


OVER_SEEDS = (
    "Student and control arms were trained {count} times in other orders, each pair in the same; "
    "the intervals over seeds are Student's t of {count} differences. The released student is the "
    "first, not the best."
)
Against = Sequence[tuple[Control, tuple[Comparison, ...]]]


def _headline(facts: ReportFacts, against: Against, result: Outcome) -> str:
    if len(against) > 1:
        return f"{SEVERAL[result]}: {'; '.join(_each(*one) for one in against)}."
    (found,) = [found for _, found in against] or [()]
    words = SOLVING if facts.evaluation.solving else HEADLINES
    return words[result].format(better=_amounts(found, "better"), worse=_amounts(found, "worse"))


def _each(control: Control, found: tuple[Comparison, ...]) -> str:
    return EACH[outcome(found)].format(
        name=control.words, better=_amounts(found, "better"), worse=_amounts(found, "worse")
    )


def _leads(against: Against) -> str:
    return " and ".join(
        f"it is ahead of the {control.words} by {_amounts(found, 'better')}"
        for control, found in against
    )


def _amounts(against: tuple[Comparison, ...], order: Order) -> str:
    found = [one.amount for one in against if not one.objection and one.order == order]
    return " and ".join(filter(None, [", ".join(found[:-1]), *found[-1:]]))


def _budget(student: Run, control: Control) -> str:
    """What both arms had: only then can a reader judge the comparison."""
    run = control.run
    if control.equal != "steps":
        return (
            f"The {control.words} had {run.steps:,} steps on {run.tokens:,} tokens in "
            f"{duration(run.seconds)}, the student {student.steps:,} steps on {student.tokens:,} "
            f"tokens in {duration(student.seconds)}."
        )
    if (student.steps, student.tokens) == (run.steps, run.tokens):
        return (
            f"Both arms start from the same weights and had {student.steps:,} steps on "
            f"{student.tokens:,} tokens."
        )
    return (
        f"The budgets differ: student {student.steps:,} steps on {student.tokens:,} tokens, "
        f"control arm {run.steps:,} steps on {run.tokens:,} tokens. Part of a difference may come "
        "from that."
    )
