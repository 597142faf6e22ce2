"""Putting a release together: model, builds, report, card, obligations."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overproof.core.artifact import Artifact, Json
from overproof.policy.obligations import Plan
from overproof.release import facts as f
from overproof.release.card import write_card
from overproof.release.origins import joined
from overproof.release.parts import Parts
from overproof.release.report import write_report


def write(folder: Path, parts: Parts, facts: f.ReportFacts, plan: Plan) -> None:
    """Fill an empty folder with all of a release but its proof.

    Args:
        facts: what `collect` found.
        plan: name, notices and card lines that the teacher's terms ask for.
    """
    _copy(parts.student, folder / "model")
    if parts.export:
        _copy(parts.export, folder / "export")
    write_report(facts, folder)
    models = [facts.teacher_model, *([facts.base_model] if facts.base_model else [])]
    # The terms of a vendor's service license no weights.
    licence = joined([one.licence for one in models if one.has_licence]) or "other"
    write_card(facts, folder, licence=licence, card_lines=plan.card_lines)
    for name, text in plan.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _copy(artifact: Artifact, folder: Path) -> None:
    for entry in artifact.manifest["files"]:
        target = folder / entry["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / entry["name"], target)


def receipts(export: Artifact) -> Sequence[Json]:
    """The parity receipts of an export."""
    found: dict[str, Any] = export.facts["receipts"]
    return list(found.values())
