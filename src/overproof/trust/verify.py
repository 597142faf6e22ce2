"""Verify a release: every file, statement, log entry, input and obligation, offline."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from overproof.core.console import meter, note
from overproof.core.errors import TrustError, UsageError
from overproof.trust.chain import Chain, walk
from overproof.trust.claims import Claim, claims
from overproof.trust.coverage import Coverage, cover
from overproof.trust.folder import Folder
from overproof.trust.keys import PublicKey
from overproof.trust.proofs import (
    CHECKPOINT,
    PROOF,
    RELEASE,
    Proofs,
    is_bundle,
    is_log,
    log_proof_of,
    read_proofs,
)
from overproof.trust.rfc6962 import Tree, leaf_hash
from overproof.trust.strict import shown, step
from overproof.trust.tlog import MAX_NOTE_BYTES, Checkpoint, LogProof, NoteKey

MAX_LOG_PROOF_BYTES = MAX_NOTE_BYTES + 65_536  # a checkpoint and at most 64 hashes
MAX_NAMED = 20  # files listed in one message
MEGABYTE = 1_000_000
VERDICT_FORMAT = "overproof-verdict/1"
Outcome = Literal["accepted", "consistent", "rejected"]
TITLES = {
    1: "statements read",
    2: "signatures verified",
    3: "log entries proved",
    4: "files match the manifest",
    5: "inputs traced to their ends",
    6: "policy verdicts cover the chain",
}


@dataclass(frozen=True)
class Config:
    """What to verify.

    Attributes:
        release: the folder that holds `proof/`.
        signer: the public key that the release must be signed with; None: any, and then the best
            outcome is `consistent`.
        json: return a rejection as a verdict instead of raising it.
    """

    release: Path
    signer: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class Step:
    """One step that passed: how many things it checked."""

    number: int
    title: str
    count: int
    detail: str


@dataclass(frozen=True)
class Failure:
    """The step that failed, and why."""

    step: int
    what: str
    details: tuple[str, ...]
    hint: str | None


@dataclass(frozen=True)
class Verdict:
    """The outcome of a verification.

    Attributes:
        outcome: `accepted` with a pinned signer; `consistent`, signer unknown; `rejected`.
        name: the release's name, None if it could not be read.
        signer: hint (SHA-256) of the key that signed.
    """

    outcome: Outcome
    release: str
    name: str | None
    signer: str | None
    steps: tuple[Step, ...]
    claims: tuple[Claim, ...]
    failure: Failure | None = None

    @property
    def exit_code(self) -> int:
        """0 accepted, 3 otherwise."""
        return 0 if self.outcome == "accepted" else TrustError.exit_code

    def to_json(self) -> dict[str, Any]:
        """The verdict for machines."""
        return {"format": VERDICT_FORMAT, **json.loads(json.dumps(asdict(self)))}


def verify(
    release: Path, signer: PublicKey | None, done: Callable[[Step], None] = lambda _: None
) -> Verdict:
    """Verify a release back to its certified records.

    1. Read every statement; reject unknown types, duplicate subjects, paths that leave the folder.
    2. Check each signature against the pinned signer.
    3. Check inclusion of each statement in the log, and the log checkpoint's signature.
    4. Compare every file with the release statement, by name and digest; no more, no fewer.
    5. Walk resolvedDependencies until every input is a source, a teacher, a base or code;
       no loose end.
    6. Check that policy verdicts cover every teacher, base and licence met on the way, and parity
       receipts every build.

    Nothing is fetched or run. Without a pinned signer, step 2 uses the key that the release
    itself names, which shows that it is of one piece, not whose it is.

    Args:
        done: called after each step that passed.

    Raises:
        TrustError: a step failed; `.step` is its number.
        UsageError: there is no such folder.
        StageError: a file cannot be read.
    """
    steps: list[Step] = []

    def passed(number: int, count: int, detail: str) -> None:
        steps.append(Step(number, TITLES[number], count, detail))
        done(steps[-1])

    # 1.
    with step(1):
        folder = Folder.list(release)
        proofs = read_proofs(folder)
    passed(1, len(proofs.signed), f"{len(folder.files)} files in the release")
    # 2.
    key = _check_signatures(proofs, signer)
    passed(2, len(proofs.signed), _signer_detail(key, signer))
    # 3.
    checkpoint = _check_log(folder, proofs)
    passed(3, len(proofs.signed), f"log {shown(checkpoint.origin)}, size {checkpoint.size}")
    # 4.
    megabytes = _check_files(folder, proofs) / MEGABYTE
    passed(4, proofs.release.files, f"{megabytes:,.1f} MB hashed")
    # 5.
    with step(5):
        chain = walk(proofs)
    passed(5, sum(len(stage.inputs) for stage in chain.stages), _chain_detail(chain))
    # 6.
    with step(6):
        coverage = cover(proofs, chain, folder)
    passed(6, len(coverage.verdicts) + len(coverage.certificates), _coverage_detail(coverage))
    return Verdict(
        outcome="accepted" if signer else "consistent",
        release=str(release),
        name=proofs.release.name,
        signer=key.hint,
        steps=tuple(steps),
        claims=claims(proofs, chain, coverage, pinned=signer is not None),
    )


def _check_signatures(proofs: Proofs, signer: PublicKey | None) -> PublicKey:
    """Step 2. Returns the key that signed."""
    key = signer or _named_signer(proofs)
    for item in proofs.signed:
        with step(2, item.file):
            item.bundle.verify(key)
    return key


def _named_signer(proofs: Proofs) -> PublicKey:
    with step(2, RELEASE):
        try:
            return PublicKey.from_pem(proofs.release.signer.encode(), "the signer's key")
        except UsageError as error:
            raise TrustError(error.what, details=error.details) from error


def _check_log(folder: Folder, proofs: Proofs) -> Checkpoint:
    """Step 3. The log holds exactly the statements of this release, in order of file name."""
    names = set(folder.files)
    with step(3, RELEASE):
        key = NoteKey.parse(proofs.release.log)
    with step(3, CHECKPOINT):
        if CHECKPOINT not in names:
            raise TrustError("missing")
        data = folder.read(CHECKPOINT, MAX_NOTE_BYTES)
        checkpoint = Checkpoint.open(data, key)
    _check_log_is_whole(folder, proofs, checkpoint)
    # Where all statements together give the signed root, a failing path is the proof file's fault.
    tree = Tree(leaf_hash(item.data) for item in proofs.signed)
    whole = tree.root == checkpoint.root
    for index, item in enumerate(proofs.signed):
        name = log_proof_of(item.file)
        with step(3, name):
            if name not in names:
                raise TrustError("missing")
            proof = LogProof.parse(folder.read(name, MAX_LOG_PROOF_BYTES))
            if proof.checkpoint != data:
                raise TrustError(f"its checkpoint is not {CHECKPOINT}, byte for byte")
            if proof.index != index:
                raise TrustError(
                    "another place in the log than its file name has",
                    details=[f"got index {proof.index}, wanted {index}"],
                )
        with step(3, name if whole else item.file):
            proof.check(item.data, checkpoint)
    return checkpoint


def _check_log_is_whole(folder: Folder, proofs: Proofs, checkpoint: Checkpoint) -> None:
    """A log proof without its statement, or a size that differs, means that one was taken away."""
    wanted = {log_proof_of(item.file): item.file for item in proofs.signed}
    known = {*wanted, CHECKPOINT}
    alone = [name for name in folder.files if is_log(name) and name not in known]
    if not alone and checkpoint.size == len(proofs.signed):
        return
    details = []
    for name in alone:
        statement = name.removesuffix(".tlog-proof") + ".sigstore.json"
        details += [f"{statement}: missing", f"{name}: the log proof of a missing statement"]
    if not alone:
        unlogged = [
            item.file
            for name, item in zip(wanted, proofs.signed, strict=True)
            if name not in folder.files
        ]
        details = [f"{name}: not in the log" for name in unlogged]
        taken = min(MAX_NAMED, max(0, checkpoint.size - len(proofs.signed)))
        details += [f"{PROOF}{number}-…: missing" for number in _gaps(proofs)[:taken]]
        details.append(
            f"{CHECKPOINT}: {checkpoint.size} entries, {PROOF} has {len(proofs.signed)} statements"
        )
    raise TrustError("the log and the statements do not agree", step=3, details=details)


def _gaps(proofs: Proofs) -> list[int]:
    """Numbers that the statements' names leave out: of those taken away with their log proofs.

    Names are not signed: only the places next to the first number are looked at, whatever the
    last one is.
    """
    names = (re.match(rf"{PROOF}(\d{{2,6}})-", item.file) for item in proofs.signed)
    there = {int(found[1]) for found in names if found}
    first = 10 ** (len(str(min(there, default=10))) - 1)
    near = range(first, min(max(there, default=0), first + len(there) + MAX_NAMED))
    return [number for number in near if number not in there]


def _check_files(folder: Folder, proofs: Proofs) -> int:
    """Step 4. Returns the number of bytes hashed."""
    wanted = {s.name: s.sha256 for s in proofs.release_file.statement.subjects}
    present = [name for name in folder.files if not is_bundle(name) and not is_log(name)]
    there = set(present)
    wrong = [f"{name}: an empty folder, which no manifest lists" for name in folder.empty]
    wrong += [f"{shown(name)}: missing" for name in wanted if name not in there]
    wrong += [
        f"{shown(name)}: not in the release statement" for name in present if name not in wanted
    ]
    if len(wanted) != proofs.release.files:
        wrong.append(f"{RELEASE}: names {len(wanted)} files, says {proofs.release.files}")
    total = 0
    sizes = {name: folder.size(name) for name in present}
    with meter("hashing", sum(sizes.values()) // MEGABYTE, "MB") as bar:
        for name in present:
            got = folder.sha256(name)
            total += sizes[name]
            bar.advance(sizes[name] // MEGABYTE)
            if name in wanted and got != wanted[name]:
                wrong.append(f"{shown(name)}: got sha256:{got}, wanted sha256:{wanted[name]}")
    if wrong:
        more = [f"and {len(wrong) - MAX_NAMED} more"] if len(wrong) > MAX_NAMED else []
        raise TrustError(
            f"{len(wrong)} of {len({*wanted, *present})} files differ from the release statement",
            step=4,
            details=[*wrong[:MAX_NAMED], *more],
            hint="fetch the files again, or check that proof/ belongs to this release",
        )
    return total


def _signer_detail(key: PublicKey, pinned: PublicKey | None) -> str:
    known = "pinned" if pinned else "named by the release itself, not pinned"
    return f"one key, {known}: {key.hint}"


def _chain_detail(chain: Chain) -> str:
    ends = ", ".join(f"{e.annotations.kind} {shown(e.annotations.name)}" for e in chain.ends)
    return f"{len(chain.stages)} stages; ends: {ends or 'none'}"


def _coverage_detail(coverage: Coverage) -> str:
    return (
        f"{len(coverage.verdicts)} terms verdicts, {len(coverage.certificates)} certificates, "
        f"{coverage.rechecked} obligations rechecked"
    )


def run(config: Config) -> Verdict:
    """Verify as asked for on the command line.

    Raises:
        TrustError: rejected (unless `config.json`); the steps that passed are on stderr.
        UsageError: no such folder or key.
        StageError: a file cannot be read.
    """
    signer = PublicKey.load(config.signer) if config.signer else None
    steps: list[Step] = []
    try:
        return verify(config.release, signer, steps.append)
    except TrustError as error:
        if not config.json:
            for item in steps:
                note(_line(item))
            raise
        failure = Failure(error.step, error.what, error.details, error.hint)
        hint = signer.hint if signer else None
        return Verdict("rejected", str(config.release), None, hint, tuple(steps), (), failure)


def render(verdict: Verdict) -> str:
    """One line a step, the claim table, the outcome."""
    lines = [_line(item) for item in verdict.steps]
    if verdict.claims:
        wide = max(len(item.claim) for item in verdict.claims)
        lines += ["", f"{'claim':<{wide}}  {'level':<8}  evidence"]
        lines += [f"{c.claim:<{wide}}  {c.level:<8}  {c.evidence}" for c in verdict.claims]
    lines.append("")
    if verdict.failure:
        lines.append(f"rejected at step {verdict.failure.step}: {verdict.failure.what}")
        lines += [f"  {detail}" for detail in verdict.failure.details]
    elif verdict.outcome == "accepted":
        lines.append(f"accepted: {verdict.name}, signed by {verdict.signer}")
    else:
        lines += [
            f"consistent, signer unknown: {verdict.name}, signed by {verdict.signer}",
            "pin the key of whoever made it: --signer KEY.pub",
        ]
    return "\n".join(lines)


def _line(item: Step) -> str:
    return f"step {item.number}  ok  {item.count:>5}  {item.title}: {item.detail}"
