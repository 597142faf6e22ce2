"""What a verification shows, claim by claim, and how strongly.

*proved*: recomputed here. *replayed*: executed again here. *attested*: signed, not rechecked.
*unknown*: nobody vouches for it, or nothing was looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from overproof.core.contract import REMOTE
from overproof.trust.chain import Chain
from overproof.trust.coverage import Coverage
from overproof.trust.predicates import (
    Arm,
    Certificate,
    Evaluation,
    RemoteTeacher,
    TermsVerdict,
)
from overproof.trust.proofs import Proofs
from overproof.trust.strict import shown

Level = Literal["proved", "replayed", "attested", "unknown"]


@dataclass(frozen=True)
class Claim:
    """One thing that a reader may want to be true."""

    claim: str
    level: Level
    evidence: str


def claims(proofs: Proofs, chain: Chain, coverage: Coverage, *, pinned: bool) -> tuple[Claim, ...]:
    """The claim table of a release that passed.

    What is only signed counts as attested when the signer is pinned; signed by anybody, it is
    unknown.
    """
    signed: Level = "attested" if pinned else "unknown"
    found = [
        Claim(
            "signed by the pinned key",
            "proved" if pinned else "unknown",
            f"{len(proofs.signed)} signatures" if pinned else "no --signer was given",
        ),
        Claim("no file changed", "proved", f"{proofs.release.files} files, SHA-256"),
        Claim("no statement is missing", "proved", f"log of {len(proofs.signed)} entries"),
        Claim("the chain has no loose end", "proved", _chain(chain)),
        *_model(chain, signed),
        *_origins(chain, coverage, signed),
        *_datasets(coverage.certificates, signed),
        *_quality(proofs, coverage, signed),
        Claim("the training steps replay", "unknown", "no step was executed again"),
        Claim("nothing else was used", signed, "the stages list their inputs as complete"),
        Claim("others saw the log", "unknown", "the log is the signer's own, without witnesses"),
    ]
    return tuple(found)


def _chain(chain: Chain) -> str:
    return f"{len(chain.stages)} stages by manifest digest, {len(chain.ends)} ends"


def _model(chain: Chain, signed: Level) -> list[Claim]:
    found = []
    if chain.model:
        name, finished = shown(chain.model.name), shown(chain.model.finished)
        found.append(Claim("model/ is a stage's output", "proved", f"stage {name}"))
        found.append(Claim("that stage ran as recorded", signed, f"finished {finished}"))
    if chain.builds:
        names = ", ".join(shown(stage.name) for stage in chain.builds)
        found.append(Claim("export/ is made from model/", signed, f"stages {names}"))
    return found


def _origins(chain: Chain, coverage: Coverage, signed: Level) -> list[Claim]:
    found = [
        Claim(
            f"{end.annotations.kind} {shown(end.annotations.name)}",
            signed,
            f"sha256:{end.digest.sha256}",
        )
        for end in chain.origins()
        if end.annotations.kind != REMOTE  # it has no weights to show
    ]
    for remote in coverage.remotes:
        found += _remote(remote, signed)
    found += [
        Claim(f"terms permit {shown(verdict.teacher.name)}", signed, _terms(verdict))
        for verdict in coverage.verdicts
    ]
    if coverage.rechecked:
        found.append(Claim("obligations shown in the release", "proved", f"{coverage.rechecked}"))
    if coverage.trusted:
        found.append(Claim("other obligations met", signed, f"{coverage.trusted}"))
    return found


def _remote(remote: RemoteTeacher, signed: Level) -> list[Claim]:
    """A teacher behind an endpoint: what is signed is what the service said of itself."""
    name = shown(remote.teacher.name)
    answered = ", ".join(
        f"{count:,} answers as {shown(by)}" for by, count in remote.answered.items()
    )
    return [
        Claim(
            f"teacher {name}, remote",
            signed,
            f"{answered}, at {shown(remote.origin)}, {shown(remote.first)} to {shown(remote.last)}",
        ),
        Claim(
            f"which model answered as {name}",
            "unknown",
            "a model id is the service's word; its weights were not seen",
        ),
    ]


def _terms(verdict: TermsVerdict) -> str:
    approval = (verdict.model_extra or {}).get("approval")
    by = f", approved by {shown(approval.get('approver'))}" if isinstance(approval, dict) else ""
    if verdict.row is None:
        return f"{verdict.verdict}{by}"
    row = verdict.row
    return shown(f"{verdict.verdict}: {row.document}, {row.effective}, clause {row.clause}") + by


def _datasets(certificates: Sequence[tuple[str, Certificate]], signed: Level) -> list[Claim]:
    return [
        Claim(
            f"dataset {shown(name)} is certified",
            signed,
            f"{item.accepted:,} records, {shown(', '.join(item.licences))}, head {item.tree.head}",
        )
        for name, item in certificates
    ]


def _quality(proofs: Proofs, coverage: Coverage, signed: Level) -> list[Claim]:
    found = [
        Claim("quality on held-out prompts", signed, _measured(item.student))
        for _, item in proofs.of(Evaluation)
    ]
    found += [
        Claim(
            f"build {shown(item.target)} equals the model",
            signed,
            f"KL {item.kl_nats_per_token:.4g} nats per token, bound {item.max_kl:.4g}",
        )
        for item in coverage.parity
    ]
    return found


def _measured(student: Arm) -> str:
    for found, what in (
        (student.kl_nats_per_token, "KL {} nats per token"),
        (student.common_kl_nats_per_place, "KL {} nats per place over common tokens"),
        (student.nats_per_byte, "cross-entropy {} nats per byte of the teacher's answers"),
    ):
        if found is not None:
            return what.format(f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]")
    return "no KL stated"
