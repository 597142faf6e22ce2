"""The numbers that a report compares arms by, and how each is written."""

from __future__ import annotations

from dataclasses import dataclass

from overproof.release.figures import Arm, Interval
from overproof.release.words import measured, percent, signed, within


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

    @property
    def short(self) -> str:
        """What it measures, without the unit."""
        return self.label.partition(", ")[0]

    def amount(self, value: float, margin: float) -> str:
        """The size of a difference as text, such as `1.7 ± 0.5 points in top-1 agreement`."""
        if self.share:
            return f"{100 * abs(value):.1f} ± {100 * margin:.1f} points in {self.short}"
        unit = self.label.partition(", ")[2]
        return " ".join(filter(None, [within(abs(value), margin), unit, "in", self.short]))


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
