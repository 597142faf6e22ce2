"""A teacher of one's own: what the gate says of a model that the run itself made.

No publisher's terms bind it. What it was made of is not taken on trust: the stage's manifest has to
show certified records and nothing else, whose licences the run has demanded already. A table of
names could not say that, for anybody may name a folder as they like.
"""

from __future__ import annotations

import datetime as dt

from overproof.core.artifact import Artifact
from overproof.core.contract import TEACHER, USE
from overproof.core.errors import PolicyError
from overproof.policy.gate import Decision, Ruling, Teacher
from overproof.policy.lookup import Finding
from overproof.policy.rows import Channel, Row
from overproof.policy.verdict import Verdict

MADE_OF = "dataset"
ROW = Row(
    id="own-model-trained-from-scratch",
    vendor="the releaser",
    family="own model",
    match=("own-model",),
    artefact="weights that this run trained from scratch",
    channel="weights",
    document="no terms: a model of the releaser's own",
    effective=dt.date(2026, 11, 28),
    date_basis="seen",
    retrieved="2026-11-28",
    clause="none",
    source="the stage `teacher` of this release: random weights, trained on its certified records",
    verdict=Verdict.ALLOW,
    read_at_source=True,
)


def decide(name: str, teacher: Artifact, channel: Channel, on: dt.date) -> Decision:
    """The verdict on a teacher that the stage `teacher` made.

    Args:
        name: as the recipe calls it.

    Raises:
        PolicyError: the stage read something else than certified records.
    """
    strange = [
        f"{row['role']}: {row['kind']} {row['name']}"
        for row in teacher.manifest["inputs"]
        if row["kind"] != MADE_OF
    ]
    if teacher.kind != TEACHER or strange:
        raise PolicyError(
            f"{name} is no model of this run's own, made of certified records alone",
            details=strange or [f"got a stage of kind {teacher.kind}, wanted {TEACHER}"],
            hint="name its makers' model as teacher.model, without teacher.scratch",
        )
    return decision(name, teacher.sha256, channel, on)


def decision(name: str, sha256: str | None, channel: Channel, on: dt.date) -> Decision:
    """The verdict on such a teacher, or on one that a run will make.

    Args:
        sha256: of the stage; None where it is not made yet.
    """
    finding = Finding(name, channel, on, (ROW,))
    return Decision(channel, USE, on, (Ruling(Teacher(name, sha256), finding),))
