"""The report of a release: `report.json` for machines, `report.html` for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from overproof.core.digest import pretty
from overproof.core.disk import disk_errors, write_atomic
from overproof.release import charts, words
from overproof.release.conclusion import Conclusion, conclude
from overproof.release.facts import Json, ReportFacts, clean, plain
from overproof.release.figures import Layer, Run, Speeds
from overproof.release.metrics import METRICS, Metric

JSON_FILE, PAGE_FILE = "report.json", "report.html"
TEMPLATES = Path(__file__).with_name("templates")

# What `overproof verify` says of a release that passes under a pinned key (trust/claims.py).
CLAIMS = (
    ("the pinned key signed it", "proved"),
    ("no file was changed, added or taken away", "proved"),
    ("no statement is missing from the signer's log", "proved"),
    ("every input that a stage lists leads back to data, teacher or code", "proved"),
    ("the notices that the teacher's terms demand are in the release", "proved"),
    ("the teacher and the training data are those named here", "attested"),
    ("the teacher's terms permit this use", "attested"),
    ("the numbers of this report were measured as described", "attested"),
    ("nothing was used that no stage lists", "attested"),
    ("the training steps give this model when run again", "unknown"),
    ("somebody other than the signer saw the log", "unknown"),
)
VERDICTS = {
    "allow": "permitted",
    "allow_with": "permitted, with obligations",
    "needs_approval": "needs an approval",
    "deny": "not permitted",
    "unknown": "unknown, treated as not permitted",
}
LEVELS = (
    ("proved", "recomputed by the reader's own machine when the command runs"),
    ("replayed", "executed again by the reader's machine, with the same result"),
    ("attested", "signed by the releaser and not checked again: a word that cannot be changed "
     "later unnoticed"),
    ("unknown", "nobody vouches for it, or it was not looked at"),
)  # fmt: skip
LIMITS = (
    "The numbers hold for the held-out prompts of this task; elsewhere the student may be far "
    "worse.",
    "Agreement with the teacher is not correctness: the student repeats the teacher's mistakes.",
    "Speed and memory are those of one machine and one engine.",
)
OF_ONE_SEED = (
    "The intervals cover the choice of prompts, not other seeds: each model was trained once."
)
OF_SEVERAL_SEEDS = (
    "The seeds change the order of the training data, and not the teacher's answers or the student "
    "that training starts from: those were drawn once."
)
OF_A_CONTROL_ARM = (
    "The student was trained on KL and a control arm on the teacher's text, so KL favours the "
    "student and perplexity the control arm. Read both."
)

OF_A_REMOTE = (
    "The teacher answered behind an endpoint. Which model that was is the service's own word: its "
    "weights were not seen, and nobody can ask for the same answers again.",
    "Its whole distributions are not known: cross-entropy is of its answers as they were drawn; "
    "KL, where it is given, is over its likeliest tokens and one class for all others, which is at "
    "most the whole KL.",
)


def write_report(facts: ReportFacts, folder: Path) -> None:
    """Write `report.json` and `report.html`. Equal facts give equal bytes.

    Raises:
        StageError: the folder cannot be written, or the disk is full.
    """
    data = pretty(to_json(facts)).encode()
    page = render(facts).encode()
    with disk_errors(folder):
        write_atomic(folder / JSON_FILE, data)
        write_atomic(folder / PAGE_FILE, page)


def to_json(facts: ReportFacts) -> Json:
    """The content of `report.json`: the facts by field, and the verdict.

    Numbers that JSON cannot hold (an infinite perplexity) are null.
    """
    body: Json = plain(facts)
    return {**body, "verdict": plain(conclude(facts)), "limits": list(all_limits(facts))}


def all_limits(facts: ReportFacts) -> tuple[str, ...]:
    """The limits of every report, that of a control arm if there is one, and this report's own."""
    seeds = OF_ONE_SEED if facts.seeds is None else OF_SEVERAL_SEEDS
    apart = facts.controls and not facts.evaluation.solving
    control = (OF_A_CONTROL_ARM,) if apart else ()
    remote = () if facts.teacher_model.remote is None else OF_A_REMOTE
    return (*LIMITS, seeds, *control, *remote, *facts.limits)


def render(facts: ReportFacts) -> str:
    """The content of `report.html`: one file that fetches nothing and runs no script."""
    drawn = {name: Markup(svg) for name, svg in charts.all_charts(facts).items()}  # noqa: S704
    page: str = (
        environment()
        .get_template("report.html.j2")
        .render(
            facts=facts,
            style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704
            charts=drawn,
            arms=arms(facts),
            metrics=metrics(facts),
            conclusion=conclude(facts),
            runs=runs(facts),
            seeds=seeds(facts),
            dropped=dropped(facts),
            shapes=shapes(facts),
            costs=costs(facts),
            headline=headline(facts),
            claims=CLAIMS,
            levels=LEVELS,
            verdict_words=VERDICTS,
            limits=all_limits(facts),
            recipe=pretty(plain(facts.recipe)) if facts.recipe else "",
        )
    )
    return page


def shapes(facts: ReportFacts) -> list[tuple[str, int, int]]:
    """Label, the larger model's and the student's of each number of their shapes that is known."""
    larger, student = facts.sizes.larger, facts.sizes.student
    rows = [
        ("Layers", larger.layers, student.layers),
        ("Channels of the states", larger.hidden, student.hidden),
        ("Heads of queries", larger.heads, student.heads),
        ("Heads of keys and values", larger.kv_heads, student.kv_heads),
        ("Width of the MLPs", larger.mlp_width, student.mlp_width),
        ("Vocabulary, tokens", larger.vocabulary, student.vocabulary),
    ]
    return [(label, big, small) for label, big, small in rows if big and small]


def costs(facts: ReportFacts) -> list[tuple[str, str, str, str]]:
    """Label, limit, prediction and what came out of each figure of a budget."""
    found = facts.costs
    if found is None:
        return []

    def row(label: str, limit: float | None, name: str, show: Any) -> tuple[str, str, str, str]:
        predicted = show(getattr(found.predicted, name)) if found.predicted else "not predicted"
        return (
            label,
            "none" if limit is None else show(limit),
            predicted,
            show(getattr(found.actual, name)),
        )

    return [
        row("A decoded token, ms", found.latency_ms, "latency_ms", words.measured),
        row("Peak memory", found.memory_bytes, "memory_bytes", words.size),
        row("Parameters", found.parameters, "parameters", words.parameters),
    ]


def arms(facts: ReportFacts) -> list[tuple[str, str, Any]]:
    """Key, label and numbers of each model in the quality table, best known first."""
    rows = [
        ("teacher", "Teacher", facts.teacher),
        ("student", "Student", facts.student),
        *((one.name, sentence_case(one.words), one.quality) for one in facts.controls),
        ("untrained", "Untrained student", facts.untrained),
    ]
    return [
        (key, label, arm)
        for key, label, arm in rows
        if arm is not None and any(metric.of(arm) for metric in METRICS)
    ]


def metrics(facts: ReportFacts) -> list[Metric]:
    """Those that were measured of any model."""
    return [metric for metric in METRICS if any(metric.of(arm) for _, _, arm in arms(facts))]


def runs(facts: ReportFacts) -> list[tuple[str, Run]]:
    """Label and numbers of each training run."""
    controls = [(sentence_case(one.words), one.run) for one in facts.controls]
    return [("Student", facts.training), *controls]


def sentence_case(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[0].upper() + text[1:]


def seeds(facts: ReportFacts) -> list[tuple[str, Any, Any]]:
    """Label of each arm trained several times, its means, and the student's lead over it."""
    found = facts.seeds
    if found is None:
        return []
    names = {"student": "Student"} | {one.name: sentence_case(one.words) for one in facts.controls}
    return [(label, found.arms[name], found.differences.get(name)) for name, label in names.items()]


def dropped(facts: ReportFacts) -> list[Layer]:
    """The dropped layers: in the order in which they went, where there is one."""
    gone = [layer for layer in facts.importance.layers if not layer.kept]
    return sorted(gone, key=lambda layer: (layer.order or 0, layer.layer))


def headline(facts: ReportFacts) -> list[tuple[str, str, str]]:
    """The four numbers that a hurried reader needs: label, number, what to compare it with."""
    return list(_headline(facts))


def _headline(facts: ReportFacts) -> Iterator[tuple[str, str, str]]:
    sizes, speed = facts.sizes, facts.speed
    whose = f"the {facts.larger}'s"
    big, small = sizes.larger.parameters, sizes.student.parameters
    yield (
        "Parameters",
        words.parameters(small),
        f"{words.part(small, big)} of {whose} {words.parameters(big)}",
    )
    if speed is not None:
        yield from _fast_and_small(speed, whose)
    found = facts.student.top1_agreement
    if found is not None:
        low, high = words.percent(found.low), words.percent(found.high)
        yield (
            "Agreement with the teacher",
            words.percent(found.value),
            f"of tokens, interval {low} to {high}",
        )
    elif (cross := facts.student.nats_per_byte) is not None:
        low, high = words.measured(cross.low), words.measured(cross.high)
        yield (
            "Cross-entropy",
            words.measured(cross.value),
            f"nats per byte of the teacher's answers, interval {low} to {high}",
        )


def _fast_and_small(speed: Speeds, whose: str) -> Iterator[tuple[str, str, str]]:
    """Args: whose: the larger model's, in words."""
    fast, slow = speed.student.decode_tokens_per_second, speed.larger.decode_tokens_per_second
    yield (
        "Decode speed",
        words.times(fast, slow),
        f"{whose}: {words.measured(fast)} against {words.measured(slow)} tokens per second",
    )
    small, big = speed.student.peak_memory_bytes, speed.larger.peak_memory_bytes
    yield (
        "Peak memory",
        words.size(small),
        f"{words.part(small, big)} of {whose} {words.size(big)}",
    )


@cache
def environment() -> jinja2.Environment:
    """The template engine: everything is escaped, an unknown name is an error."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    for name in ("given", "measured", "percent", "count"):
        found.filters[name] = getattr(words, name)
    for name in ("size", "parameters", "duration"):
        found.filters[name] = _unbroken(getattr(words, name))
    found.globals.update(times=words.times, part=words.part)
    found.filters["link"] = link
    return found


def _unbroken(write: Callable[[Any], str]) -> Callable[[Any], str]:
    """The same words, number and unit held on one line."""
    return lambda value: write(value).replace(" ", "\N{NO-BREAK SPACE}")


def link(target: str) -> Markup:
    """A web address as a link that opens nothing by itself; any other text as text."""
    text = clean(str(target))
    if not text.startswith(("https://", "http://")):
        return Markup.escape(text)
    return Markup('<a href="{}" rel="noopener noreferrer">{}</a>').format(text, text)


__all__ = ["Conclusion", "ReportFacts", "conclude", "render", "to_json", "write_report"]
