"""Did distillation help? The answer that the measured intervals allow, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from overproof.release.facts import Arm, Evaluation, Interval, ReportFacts, Run
from overproof.release.words import measured, percent, signed

Order = Literal["better", "worse", "unclear"]
Outcome = Literal["helped", "hurt", "mixed", "not shown", "not measured"]


@dataclass(frozen=True)
class Metric:
    """A number of an arm, and which direction is better."""

    field: str
    heading: str
    unit: str
    label: str
    higher_is_better: bool
    share: bool = False

    def of(self, arm: Arm) -> Interval | None:
        """The number of one arm."""
        found: Interval | None = getattr(arm, self.field)
        return found

    def one(self, number: float) -> str:
        """A number of this metric as text."""
        return percent(number) if self.share else measured(number)

    def span(self, found: Interval) -> str:
        """The interval as text, short."""
        if not self.share:
            return f"{measured(found.low)}–{measured(found.high)}"
        return f"{percent(found.low).removesuffix('%')}–{percent(found.high)}"

    def show(self, found: Interval) -> str:
        """Value and interval as text."""
        return f"{self.one(found.value)} [{self.one(found.low)}, {self.one(found.high)}]"

    def change(self, found: Interval) -> str:
        """A difference with its interval as text, with signs."""
        value, low, high = (signed(number, share=self.share) for number in vars(found).values())
        return f"{value} [{low}, {high}]{' points' if self.share else ''}"


METRICS = (
    Metric(
        "kl_nats_per_token",
        "KL to the teacher",
        "nats per token",
        "KL to the teacher, nats per token",
        higher_is_better=False,
    ),
    Metric(
        "top1_agreement",
        "Top-1 agreement",
        "share of tokens",
        "top-1 agreement",
        higher_is_better=True,
        share=True,
    ),
    Metric(
        "perplexity",
        "Perplexity",
        "of the teacher's text",
        "perplexity of the teacher's text",
        higher_is_better=False,
    ),
    Metric(
        "common_kl_nats_per_place",
        "KL over common tokens",
        "nats per place where both tokenizers have a boundary",
        "KL to the teacher over common tokens, nats per shared place",
        higher_is_better=False,
    ),
    Metric(
        "common_top1_agreement",
        "Top-1 agreement over common tokens",
        "share of shared places",
        "top-1 agreement over common tokens",
        higher_is_better=True,
        share=True,
    ),
    Metric(
        "nats_per_byte",
        "Cross-entropy",
        "nats per byte of the teacher's answers",
        "cross-entropy of the teacher's answers, nats per byte",
        higher_is_better=False,
    ),
    Metric(
        "pass_at_1",
        "Problems solved",
        "by one answer (pass@1)",
        "problems solved by one answer",
        higher_is_better=True,
        share=True,
    ),
)
SOLVED = "pass_at_1"
PROBLEMS = ". It does not count: how many problems are solved is another question than closeness"
CLOSENESS = (
    ". It does not count: the student learned to solve problems, and its teacher's mistakes are "
    "no aim"
)
OF_TEXT = ("perplexity", "nats_per_byte")  # least for what the text was drawn from
BELOW = (
    ". It does not count: one of the two is below the teacher's own, and lower is then no longer "
    "closer"
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
    """

    metric: Metric
    student: Interval
    other: Interval
    difference: Interval
    objection: str = ""

    @property
    def order(self) -> Order:
        """Better or worse only where the interval of the paired difference leaves out zero.

        Both arms answer the same prompts. Their own intervals hold the spread of the prompts
        twice, and may overlap where prompt after prompt one arm is ahead.
        """
        if self.difference.high < 0:
            return "worse" if self.metric.higher_is_better else "better"
        if self.difference.low > 0:
            return "better" if self.metric.higher_is_better else "worse"
        return "unclear"

    def sentence(self, other: str) -> str:
        """The comparison in words."""
        numbers = (
            f"{self.metric.show(self.student)} against {self.metric.show(self.other)}, "
            f"prompt by prompt {self.metric.change(self.difference)}"
        )
        ending = {
            "better": f"the student is better than {other}",
            "worse": f"the student is worse than {other}",
            "unclear": "that interval holds zero, so no difference is shown",
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
    student: Arm, other: Arm, difference: Arm, teacher: Arm, evaluation: Evaluation
) -> tuple[Comparison, ...]:
    """The student against another arm, by every metric that both have.

    Perplexity or cross-entropy of the teacher's text is least for the distribution that the text
    was drawn from.
    That is the teacher's only if it was drawn as it is, at temperature 1; and even then lower
    means closer only down to the teacher's own. Elsewhere it is shown and does not count.
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
        elif metric.field in OF_TEXT and own and not evaluation.as_is:
            cut = "" if evaluation.top_k is None else f" from {evaluation.top_k} tokens"
            objection = SHARPENED.format(**vars(evaluation), cut=cut)
        elif metric.field in OF_TEXT and own and min(mine.value, theirs.value) < own.value:
            objection = BELOW
        found.append(Comparison(metric, mine, theirs, change, objection))
    return tuple(found)


def _against(facts: ReportFacts, name: str, other: Arm | None) -> tuple[Comparison, ...]:
    difference = facts.differences.get(name)
    if other is None or difference is None:
        return ()
    return compare(facts.student, other, difference, facts.teacher, facts.evaluation)


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


HEADLINES: dict[Outcome, str] = {
    "helped": "Distillation helped, judged by {better}: learning from the teacher's distribution "
    "brought the student closer to the teacher than equal training on the teacher's text alone.",
    "hurt": "Distillation did not help, judged by {worse}: equal training on the teacher's text "
    "alone brought the control arm closer to the teacher.",
    "mixed": "Mixed: the student is better than the control arm by {better}, and worse by {worse}.",
    "not shown": "Not shown: student and control arm cannot be told apart on these prompts, so "
    "this run gives no evidence that distillation helped.",
    "not measured": "Not measured: without a control arm this report cannot say whether "
    "distillation helped.",
}


SOLVING: dict[Outcome, str] = {
    "helped": "Checking helped: learning from right answers alone made the student solve more "
    "problems than equal training on all of the teacher's answers.",
    "hurt": "Checking did not help: equal training on all of the teacher's answers made the "
    "control arm solve more problems.",
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
# The control arm can end below its start. To be ahead of it is then no gain.
IN_VAIN = (
    "Not shown: the student is ahead of the control arm by {better}, but training did not make it "
    "better than it was."
)
TRAINING: dict[Outcome, str] = {
    "helped": "Training itself helped: the student is better than before training.",
    "hurt": "Training itself did harm: the student is worse than before training.",
    "mixed": "Against its own start the student is better by one measure, worse by another.",
    "not shown": "Training itself shows no effect: the student is not told apart from its start.",
    "not measured": "The untrained student was not measured.",
}


def conclude(facts: ReportFacts) -> Conclusion:
    """Judge the student against the control arm, then against its own start.

    1. Compare with the control arm by every metric; the outcome is what they say together.
    2. Say whether both arms had the same steps and tokens: only then is the comparison fair.
    3. Compare with the untrained student: a training that changed nothing has not helped.
    4. Where problems are to be solved, compare with the teacher.
    """
    sentences: list[str] = []
    # 1.
    against = _against(facts, "control", facts.control)
    sentences += [found.sentence("the control arm") for found in against]
    # 2.
    if against:
        sentences.append(_budget(facts.training.student, facts.training.control))
    # 3.
    since = outcome(_against(facts, "untrained", facts.untrained))
    sentences.append(TRAINING[since])
    result = outcome(against)
    headline = (SOLVING if facts.evaluation.solving else HEADLINES)[result]
    if result == "helped" and since in ("hurt", "not shown"):
        result, headline = "not shown", IN_VAIN
    # 4.
    if facts.evaluation.solving:
        lead = [one for one in _against(facts, "teacher", facts.teacher) if not one.objection]
        sentences += [one.sentence("the teacher") for one in lead]
        headline = " ".join([headline, *(AGAINST_THE_TEACHER[one.order] for one in lead)])
    better, worse = _names(against, "better"), _names(against, "worse")
    return Conclusion(result, headline.format(better=better, worse=worse), tuple(sentences))


def _names(against: tuple[Comparison, ...], order: Order) -> str:
    names = [one.metric.label for one in against if not one.objection and one.order == order]
    names = [name.partition(",")[0] for name in names]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _budget(student: Run, control: Run | None) -> str:
    if control is None:
        return "The budget of the control arm is not recorded: the comparison may not be equal."
    if (student.steps, student.tokens) == (control.steps, control.tokens):
        return (
            f"Both arms start from the same weights and had {student.steps:,} steps on "
            f"{student.tokens:,} tokens."
        )
    return (
        f"The budgets differ: student {student.steps:,} steps on {student.tokens:,} tokens, "
        f"control arm {control.steps:,} steps on {control.tokens:,} tokens. Part of a "
        "difference may come from that."
    )
