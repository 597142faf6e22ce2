"""Step 6 for teachers behind endpoints: who answered, as the stage says that asked."""

from __future__ import annotations

from overproof.core.contract import REMOTE
from overproof.core.errors import TrustError
from overproof.trust.chain import SAMPLES, Chain
from overproof.trust.predicates import RemoteTeacher
from overproof.trust.proofs import Proofs
from overproof.trust.strict import shown


def check_remotes(proofs: Proofs, chain: Chain) -> tuple[RemoteTeacher, ...]:
    """Check that each stage that asked a remote teacher has a statement that says who answered.

    Raises:
        TrustError: there is none, it says something else than the stage, or it is of no such stage.
    """
    asked = {
        stage.sha256: (stage, end)
        for stage in chain.stages
        if stage.kind == SAMPLES
        for end in stage.inputs
        if end.annotations.kind == REMOTE
    }
    found = list(proofs.of(RemoteTeacher))
    wrong = [
        f"{item.file}: about sha256:{item.about}" for item, _ in found if item.about not in asked
    ]
    wrong += [
        f"stage {shown(stage.name)!r} asked {shown(end.annotations.name)!r}, and no statement says "
        "who answered"
        for sha256, (stage, end) in asked.items()
        if sha256 not in {item.about for item, _ in found}
    ]
    told = {end.digest.sha256 for _, end in asked.values()}
    wrong += [
        f"teacher {shown(end.annotations.name)!r} was asked by no stage of kind {SAMPLES!r}"
        for end in chain.ends
        if end.annotations.kind == REMOTE and end.digest.sha256 not in told
    ]
    for item, said in found:
        if item.about in asked:
            stage, end = asked[item.about]
            theirs = {"name": end.annotations.name, "sha256": end.digest.sha256}
            stated = {"teacher": theirs, **stage.facts.get("remote", {})}
            if item.statement.predicate != stated or end.uri != said.origin:
                wrong.append(f"{item.file}: not what stage {shown(stage.name)!r} says")
    if wrong:
        raise TrustError("who answered as a remote teacher is not stated as it was", details=wrong)
    return tuple(said for _, said in found)
