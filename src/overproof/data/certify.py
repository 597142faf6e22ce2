"""Certify a training set: a licence, a checked state and a key for every record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from overproof.core.artifact import MANIFEST, Artifact, Input, Json, Resource, build, check
from overproof.core.digest import sha256_file
from overproof.core.disk import exclusive
from overproof.core.errors import PolicyError, UsageError
from overproof.core.section import Positive, Section
from overproof.data import dataset
from overproof.data.assemble import DUPLICATES, Assembly
from overproof.data.checks.encoding import Encoding, Mojibake
from overproof.data.checks.length import Length
from overproof.data.checks.overlap import Overlap
from overproof.data.checks.personal import Personal
from overproof.data.judge import Judge, Rule
from overproof.data.keys import open_keys
from overproof.data.read import open_source
from overproof.data.records import MATCHING
from overproof.policy import licences

DEFAULT_FOLDER = Path("out/certified")
# A line may be this many times longer than the longest canonical record: JSON escapes take six
# bytes for one, and other fields stand beside the text.
LINE_FACTOR = 8


class Config(Section):
    """What `overproof certify` is asked for."""

    file: Path = Field(description="JSONL or Parquet with prompt, messages or text")
    licence: str | None = Field(None, description="SPDX expression for records that name none")
    origin: str | None = Field(None, description="origin for records that name none")
    out: Path | None = Field(None, description="folder of the data set; out/certified/NAME")
    exclude: Path | None = Field(None, description="certified data set whose records are refused")
    personal_data: Literal["reject", "warn"] = Field("reject", description="what a finding does")
    max_record_bytes: Positive = Field(65_536, description="longest canonical record, bytes")


class Demands(Protocol):
    """The part of a configuration that `certify` reads; `core.sections.DataConfig` has it too."""

    @property
    def licence(self) -> str | None:
        """SPDX expression for records that name none."""

    @property
    def origin(self) -> str | None:
        """Origin for records that name none."""

    @property
    def personal_data(self) -> Literal["reject", "warn"]:
        """What a finding of personal data does."""

    @property
    def max_record_bytes(self) -> int:
        """Longest canonical record, bytes."""


@dataclass(frozen=True)
class Certified:
    """A finished data set and its certificate."""

    artifact: Artifact
    certificate: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """0: `run` raises where no record is accepted."""
        return 0

    def to_json(self) -> dict[str, Any]:
        """Where the data set is, its digest and its certificate, for machines."""
        return {
            "path": str(self.artifact.path),
            "sha256": self.artifact.sha256,
            "certificate": self.certificate,
        }


def run(config: Config) -> Certified:
    """Certify one file into a folder of its own.

    Raises:
        UsageError: no such file, an empty one, one without a readable record or with two columns
            of one name; `out` holds something else; `exclude` is no certified data set.
        PolicyError: no record was accepted.
        StageError: a damaged file, a full disk, or another run in the same folder.
        TrustError: the data set to exclude does not match its manifest.
    """
    out = config.out or DEFAULT_FOLDER / config.file.stem
    _refuse_foreign(out)
    exclude = dataset.open_dataset(config.exclude) if config.exclude else None
    with exclusive(out.absolute().parent):
        artifact = certify(
            config.file, config, store=out.absolute().parent, name=out.name, exclude=exclude
        )
    return Certified(artifact, dataset.certificate(artifact))


def render(certified: Certified) -> str:
    """The summary for people: accepted, rejected by reason, where the rejected ones are."""
    cert, path = certified.certificate, certified.artifact.path
    lines = [f"{cert['accepted']:,} of {cert['records']:,} records accepted: {path}"]
    if cert["rejected"]:
        lines.append(f"{cert['rejected']:,} rejected: {path / dataset.REJECTED}")
        lines += [f"  {reason:<28}{count:>9,}" for reason, count in _by_count(cert["reasons"])]
    noted = [
        f"{count:,} {row['name']}:{kind}"
        for row in cert["checks"]
        if row["action"] == "warn"
        for kind, count in row["findings"].items()
    ]
    if noted:
        lines.append(f"noted, not rejected: {', '.join(noted)}")
    named = ", ".join(f"{name} {count:,}" for name, count in _by_count(cert["licences"]))
    lines.append(f"licences: {named}")
    lines.append(f"record tree: {cert['tree']['size']:,} leaves, head {cert['tree']['head']}")
    lines.append(f"duplicates and overlap: {MATCHING}")
    return "\n".join(lines)


def certify(
    source: Path,
    config: Demands,
    *,
    store: Path,
    name: str,
    exclude: Artifact | None = None,
) -> Artifact:
    """Make the certified data set of one file, as the artifact `name` in `store`.

    1. The source is recognised and its digest taken; the data set to exclude is checked.
    2. Each line is judged; what is rejected is written with its reason and its raw data.
    3. What is accepted is sorted by key on disk; of equal keys the first stays, the others are
       rejected as duplicates. Rows and keys are written.
    4. The record tree is built over the keys, and the certificate written.
    5. The source's digest is taken again: it must not have changed meanwhile.

    Args:
        source: JSONL or Parquet.
        config: what is demanded; `core.sections.DataConfig` will do.
        store: folder of the run's artifacts.
        name: name of the artifact.
        exclude: a data set none of whose records may be in this one (exact or normalised match).

    Raises:
        UsageError: nothing readable in the file, two columns of one name, or the licence by
            default is no SPDX expression.
        PolicyError: no record was accepted; the rejected ones are kept with their reasons.
        StageError: the file is damaged or changed, or the disk is full.
        TrustError: the data set to exclude does not match its manifest.
    """
    # 1.
    lines = open_source(source, config.max_record_bytes * LINE_FACTOR)
    licence = licences.normalise(config.licence) if config.licence else None
    given = Resource.here("source", source.name, sha256_file(source))
    inputs: dict[str, Input] = {"source": given}
    if exclude is not None:
        check(exclude)
        inputs["exclude"] = exclude
    with ExitStack() as stack:
        rules = _rules(config)
        if exclude is not None:
            keys = stack.enter_context(open_keys(exclude.file(dataset.KEYS)))
            rules.append(Rule(Overlap(keys), "reject"))
        judge = Judge(rules, licence, config.origin)
        assembly = Assembly(source, given.sha256, lines, judge)
        artifact = build(
            store,
            dataset.KIND,
            inputs=inputs,
            config=_settings(licence, rules, config),
            make=assembly.make,
            name=name,
            layer="data",
        )
    _demand_some(artifact)
    return artifact


def _settings(licence: str | None, rules: list[Rule], config: Demands) -> Json:
    return {
        "licence": licence,
        "origin": config.origin,
        "max_record_bytes": config.max_record_bytes,
        "checks": [*(rule.to_json() for rule in rules), DUPLICATES],
    }


def _rules(config: Demands) -> list[Rule]:
    return [
        Rule(Length(config.max_record_bytes), "reject"),
        Rule(Encoding(), "reject"),
        Rule(Mojibake(), "warn"),
        Rule(Personal(), config.personal_data),
    ]


def _refuse_foreign(out: Path) -> None:
    """A certified data set replaces an older one in its place, and must replace nothing else."""
    if not out.exists() or _is_dataset(out):
        return
    if out.is_file():
        raise UsageError(f"{out} is a file, wanted a folder for the data set")
    if any(out.iterdir()):
        raise UsageError(
            f"{out} holds something else",
            details=["wanted a new folder, or a data set that was certified earlier"],
            hint="give another folder with --out",
        )


def _demand_some(artifact: Artifact) -> None:
    facts = artifact.facts
    if facts["accepted"]:
        return
    hint = f"read {artifact.path / dataset.REJECTED}"
    if "licence:missing" in facts["reasons"]:
        hint += "; --licence names the licence of records that name none"
    raise PolicyError(
        f"none of {facts['records']:,} records was accepted",
        details=[f"{reason}: {count:,}" for reason, count in _by_count(facts["reasons"])],
        hint=hint,
    )


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _is_dataset(out: Path) -> bool:
    try:
        kind = json.loads((out / MANIFEST).read_bytes())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(kind == dataset.KIND)
