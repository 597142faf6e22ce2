"""The charts of the report: SVG by matplotlib, inline, with the colours of the page.

matplotlib draws with stand-in colours. They are then replaced by CSS variables, so that one drawing
serves light and dark pages; text stays text, so that it can be read aloud, found and scaled. Equal
facts give equal bytes. The palette is Okabe and Ito's (2008), and every series has a marker or a
dash of its own: nothing depends on colour alone.
"""

from __future__ import annotations

import html
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from overproof.release.facts import ReportFacts
from overproof.release.figures import Arm, Importance, Interval, Positions, Run
from overproof.release.words import percent

WIDTH_INCHES, HEIGHT_INCHES = 5.6, 3.5  # 403 by 252 points: one column of the page
PANEL_INCHES = 2.2  # of each of several panels
MAX_POINTS = 240  # points drawn of a curve; longer ones are averaged in equal bins
MIN_ANSWERS = 10  # positions that fewer answers reach are not drawn: their share is noise
LABEL_CHARACTERS = 32  # of a line beside an axis
LEGEND_COLUMNS = 3
BIN_POSITIONS = 4  # neighbouring positions averaged, weighted by answers

# Stand-ins, each replaced by the CSS variable of its name with the light value as fallback.
INK, FAINT, PAPER = "#010101", "#020202", "#030303"
TEACHER, STUDENT, CONTROL, UNTRAINED = "#0a0101", "#0a0202", "#0a0303", "#0a0404"
VARIABLES = {
    INK: ("ink", "#1c1f23"),
    FAINT: ("rule", "#c9ced6"),
    PAPER: ("paper", "#ffffff"),
    TEACHER: ("teacher", "#3d4650"),
    STUDENT: ("student", "#0072b2"),
    CONTROL: ("control", "#d55e00"),
    UNTRAINED: ("untrained", "#8a6f9e"),
}
# Typed loosely: the names of matplotlib's settings differ between its versions.
SETTINGS: Any = {
    "svg.hashsalt": "overproof",
    "svg.fonttype": "none",
    # Measured with the font that matplotlib ships, so that every machine draws the same.
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify": False,
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
}


@dataclass(frozen=True)
class Series:
    """How one model looks in every chart."""

    label: str
    colour: str
    marker: str
    dash: str | tuple[int, tuple[int, int]]


SERIES = {
    "teacher": Series("teacher", TEACHER, "s", "-"),
    "student": Series("student", STUDENT, "o", "-"),
    "control": Series("control arm", CONTROL, "^", "--"),
    "control-time": Series("control, equal time", CONTROL, "v", "-."),
    "control-time-with-signals": Series("control, with signals", CONTROL, "<", (0, (1, 3))),
    "untrained": Series("untrained student", UNTRAINED, "D", ":"),
}


def loss_curve(facts: ReportFacts) -> str | None:
    """Training loss of the student and, each on an axis of its own, of the control arms.

    Those losses are different quantities, so they never share an axis.
    """
    runs = [("student", facts.training), *((one.name, one.run) for one in facts.controls)]
    shown = [(key, run) for key, run in runs if run.losses]
    if not shown:
        return None

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (key, run) in zip(panels, shown, strict=True):
            _loss_panel(axes, SERIES[key], run)
        panels[-1].set_xlabel("training step")

    height = PANEL_INCHES * len(shown) if len(shown) > 1 else None
    return _svg("loss", "Training loss by step", draw, height)


def _loss_panel(axes: Axes, series: Series, run: Run) -> None:
    steps, losses = _thinned([step for step, _ in run.losses], [loss for _, loss in run.losses])
    axes.plot(steps, losses, color=series.colour, linestyle="-")
    axes.set_title(f"{series.label}: {run.objective}", loc="left", color=series.colour)
    axes.set_ylabel("nats per token")
    # The first steps can be twenty times the last; on a linear axis they would hide them.
    if losses.size and float(losses.min()) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def quality_against_speed(facts: ReportFacts) -> str | None:
    """Top-1 agreement against decode speed: up is closer to the teacher, right is faster.

    Control arms and the untrained student have the student's shape, hence its speed.
    """
    speed = facts.speed
    if speed is None:
        return None
    rate = speed.student.decode_tokens_per_second
    arms: list[tuple[str, Arm]] = [
        ("student", facts.student),
        *((one.name, one.quality) for one in facts.controls),
        ("untrained", facts.untrained),
    ]
    found = [
        (SERIES[key], arm.top1_agreement, rate)
        for key, arm in arms
        if arm.top1_agreement is not None
    ]
    whole = Interval(1.0, 1.0, 1.0)  # the teacher agrees with itself
    points = list(found)
    if speed.teacher is not None:
        points.insert(0, (SERIES["teacher"], whole, speed.teacher.decode_tokens_per_second))
    if not found:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for series, share, rate in reversed(points):  # the student on top of its control arms
            error = [[share.value - share.low], [share.high - share.value]]
            axes.errorbar(
                [rate], [share.value], yerr=error, color=series.colour, marker=series.marker,
                markersize=8, capsize=4, linestyle="none",
            )  # fmt: skip
        _direct_labels(axes, points)
        axes.set_xlabel(f"decode speed, tokens per second ({speed.student.type})")
        axes.set_ylabel("top-1 agreement with the teacher")
        axes.set_xlim(0, 1.6 * max(rate for _, _, rate in points))
        axes.set_ylim(-0.06, 1.08)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    return _svg("speed", "Agreement with the teacher against decode speed", draw)


LABEL_GAP = 0.085  # least distance of two labels, share of agreement: one line of text


def _direct_labels(axes: Axes, points: Sequence[tuple[Series, Interval, float]]) -> None:
    """Name each point beside it; labels that would touch are moved apart, upwards."""
    below = -1.0
    for series, share, rate in sorted(points, key=lambda point: (point[1].value, point[0].label)):
        height = max(share.value, below + LABEL_GAP)
        below = height
        axes.annotate(
            f"{series.label} {percent(share.value)}",
            (rate, height), xytext=(9, 0), textcoords="offset points",
            va="center", color=series.colour,
        )  # fmt: skip


def agreement_by_position(facts: ReportFacts) -> str | None:
    """Top-1 agreement along the answer: whether the student drifts from its teacher."""
    by = facts.agreement_by_position
    curves = {
        "student": by.student,
        **{one.name: one.by_position for one in facts.controls},
        "untrained": by.untrained,
    }
    found = {key: _binned(curve) for key, curve in curves.items()}
    if not any(len(x) for x, _ in found.values()):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for key, (x, y) in found.items():
            series = SERIES[key]
            if len(x):
                axes.plot(x, y, color=series.colour, linestyle=series.dash, label=series.label,
                          marker=series.marker, markersize=4)  # fmt: skip
        axes.set_xlabel("position in the answer, tokens")
        axes.set_ylabel("top-1 agreement")
        axes.set_ylim(0, 1)
        axes.set_xlim(left=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        top = 1.17 if len(found) <= LEGEND_COLUMNS else 1.25
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, top), ncols=LEGEND_COLUMNS,
                    columnspacing=1.1, handlelength=1.8, handletextpad=0.5)  # fmt: skip

    return _svg("position", "Top-1 agreement by position in the answer", draw)


def importance_bars(importance: Importance) -> str | None:
    """What the measurement said of each layer; dropped layers are hatched and marked."""
    scored = [layer for layer in importance.layers if layer.score is not None]
    if not scored:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        top = max(layer.score or 0.0 for layer in scored)
        for kept, series, hatch in (
            (True, SERIES["student"], None),
            (False, SERIES["control"], "////"),
        ):
            chosen = [layer for layer in scored if layer.kept is kept]
            axes.bar(
                [layer.layer for layer in chosen], [layer.score or 0.0 for layer in chosen],
                color=series.colour if kept else "none", edgecolor=series.colour, hatch=hatch,
                linewidth=0.8, width=0.72,
            )  # fmt: skip
        _mark_layers(axes, importance, top)
        axes.set_xlabel("layer of the teacher, counted from 0")
        axes.set_ylabel("\n".join(textwrap.wrap(importance.score, LABEL_CHARACTERS)))
        axes.set_xlim(-0.7, max(layer.layer for layer in importance.layers) + 0.7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")

    return _svg("importance", f"{importance.score} by layer", draw)


def _mark_layers(axes: Axes, importance: Importance, top: float) -> None:
    """A row of marks under the bars: a cross for each dropped layer, a dot for each kept one."""
    row = -0.05 * (top or 1.0)
    marks = (
        (False, SERIES["control"], "x", "dropped"),
        (True, SERIES["student"], "o", "kept"),
    )
    for kept, series, marker, label in marks:
        x = [layer.layer for layer in importance.layers if layer.kept is kept]
        axes.plot(x, [row] * len(x), color=series.colour, marker=marker, markersize=5,
                  linestyle="none", label=f"{label} ({len(x)})")  # fmt: skip
    axes.set_ylim(-0.11 * (top or 1.0), 1.08 * (top or 1.0))
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, 1.17), ncols=2, handletextpad=0.2)


def _thinned(x: Sequence[int], y: Sequence[float]) -> tuple[Any, Any]:
    """At most `MAX_POINTS` points: means of equal bins."""
    edges = np.linspace(0, len(x), min(len(x), MAX_POINTS) + 1).astype(int)
    bins = list(itertools.pairwise(edges))
    steps, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    return (
        np.array([steps[a:b].mean() for a, b in bins]),
        np.array([values[a:b].mean() for a, b in bins]),
    )


def _binned(curve: Positions) -> tuple[list[float], list[float]]:
    """Means of neighbouring positions, weighted by how many answers reach them."""
    groups: dict[int, list[tuple[int, float, int]]] = {}
    for position, agreement, answers in curve:
        if answers >= MIN_ANSWERS:
            groups.setdefault(position // BIN_POSITIONS, []).append((position, agreement, answers))
    x, y = [], []
    for _, group in sorted(groups.items()):
        weights = [answers for _, _, answers in group]
        x.append(float(np.average([position for position, _, _ in group], weights=weights)))
        y.append(float(np.average([agreement for _, agreement, _ in group], weights=weights)))
    return x, y


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change the report
        mpl.rcParams.update(SETTINGS)
        yield


def _svg(name: str, title: str, draw: Callable[[Figure], None], height: float | None = None) -> str:
    """Draw and return an `<svg>` element that can stand in an HTML page.

    1. Draw with stand-in colours, without date or other metadata.
    2. Drop what belongs to a file of its own; give the element a role and a title.
    3. Put CSS variables where the stand-ins are, and the page's font.
    4. Prefix ids with the name, for several drawings share one page.
    """
    stream = io.StringIO()
    # 1.
    with _style():
        figure = Figure(figsize=(WIDTH_INCHES, height or HEIGHT_INCHES), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    # 2.
    text = text[text.index("<svg") :].rstrip()
    box = re.search(r'viewBox="([^"]+)"', text)
    title = html.escape(title)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box[1] if box else "0 0 403 252"}" role="img" aria-label="{title}">'
        f"<title>{title}</title>"
    )
    text = head + text[text.index(">") + 1 :]
    # 3.
    for colour, (variable, fallback) in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable}, {fallback})")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font, sans-serif)", text)
    # 4.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    return re.sub(r"url\(#", f"url(#{name}-", text)


def all_charts(facts: ReportFacts) -> dict[str, str]:
    """Every chart that the facts allow, by name."""
    drawn: Iterable[tuple[str, str | None]] = (
        ("loss", loss_curve(facts)),
        ("speed", quality_against_speed(facts)),
        ("position", agreement_by_position(facts)),
        ("importance", importance_bars(facts.importance)),
    )
    return {name: svg for name, svg in drawn if svg is not None}
