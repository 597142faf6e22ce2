"""Write the proof of a finished release: statements, signatures, log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from overproof import __version__
from overproof.core.artifact import MANIFEST, Artifact
from overproof.core.digest import sha256_bytes, sha256_json
from overproof.core.disk import TEMPORARY, disk_errors, write_atomic
from overproof.core.errors import UsageError
from overproof.trust import predicates
from overproof.trust.bundle import sign
from overproof.trust.folder import Folder
from overproof.trust.keys import PrivateKey
from overproof.trust.predicates import Certificate, DatasetHead
from overproof.trust.proofs import (
    BUNDLE,
    CHECKPOINT,
    PROOF,
    RELEASE,
    is_bundle,
    is_log,
    log_proof_of,
)
from overproof.trust.statement import Statement, Subject, own_statement, stage_statement
from overproof.trust.tlog import NoteKey, write_log

FIRST = 10  # number in the first file name; one more digit for each further 90, so that names sort
ORIGIN_DIGITS = 16  # of the digest in a log's name: 64 bits keep two releases of one name apart
Json = dict[str, Any]
Predicate = tuple[str, Artifact, Json]


def attest(
    release: Path,
    *,
    artifacts: Sequence[Artifact],
    predicates: Sequence[Predicate],
    signer: PrivateKey,
    name: str,
    facts: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write `proof/` of a release whose other files are all in place; call it last.

    1. A statement for each stage, then one for each predicate.
    2. The release statement: all files, all stages, all record trees, the log's key.
    3. Everything is signed, logged, and written; an earlier proof is replaced.

    Equal artifacts, files and key give equal bytes, as far as the stages' times are equal.

    Args:
        artifacts: every stage of the chain, in the order of the work. Inputs that are artifacts
            must be among them.
        predicates: type (`certificate`, ...), the artifact that it is about, the predicate.
        name: name of the release, which the teacher's terms may demand to begin with a word.
        facts: anything else to be signed.

    Returns:
        The files written, the release statement last.

    Raises:
        UsageError: two artifacts of one name, or an unknown predicate type.
        TrustError: a predicate does not fit its schema, the release holds links or bad names, or
            its own name is one that no release may have.
        StageError: the disk is full.
    """
    # 1.
    labels = [artifact.path.name for artifact in artifacts]
    if len(set(labels)) < len(labels):
        raise UsageError("two artifacts of one name", details=[", ".join(sorted(labels))])
    statements = [(item.path.name, stage_statement(item)) for item in artifacts]
    statements += [
        (f"{short}-{subject.path.name}", own_statement(short, subject, predicate))
        for short, subject, predicate in predicates
    ]
    # 2.
    _remove_cut_writes(release)
    final = release_statement(
        Folder.list(release), statements, signer, name=name, facts=dict(facts or {})
    )
    # 3.
    return seal(release, statements, final, signer)


def release_statement(
    folder: Folder,
    statements: Sequence[tuple[str, Statement]],
    signer: PrivateKey,
    *,
    name: str,
    facts: Json,
) -> Statement:
    """The statement that ties all others and all files together.

    The log's name holds a digest of what the release is, so that two releases of one name never
    share a log: a log must not sign two states that contradict each other (tlog-checkpoint).

    Raises:
        TrustError: the name is not one that a release may have.
        UsageError: the folder holds no file yet, or an empty folder.
    """
    stages = [
        subject
        for _, statement in statements
        if statement.predicate_type == predicates.PROVENANCE
        for subject in statement.subjects
        if subject.name.partition("/")[2] == MANIFEST
    ]
    subjects = tuple(
        Subject(file, folder.sha256(file))
        for file in folder.files
        if not is_bundle(file) and not is_log(file)
    )
    if folder.empty or not subjects:
        raise UsageError(
            "a release has files and no empty folders",
            details=[f"{folder.root / name}: empty" for name in folder.empty or ("",)],
            hint="put every file in place first, and remove folders that stayed empty",
        )
    predicate: Json = {
        "name": name,
        "overproof": __version__,
        "signer": signer.public.pem.decode(),
        "files": len(subjects),
        "stages": [{"name": item.name.partition("/")[0], "sha256": item.sha256} for item in stages],
        "datasets": [head.model_dump() for head in _heads(statements)],
        "facts": facts,
    }
    payloads = [sha256_bytes(statement.encode()) for _, statement in statements]
    files = [[subject.name, subject.sha256] for subject in subjects]
    run = sha256_json({"predicate": predicate, "statements": payloads, "files": files})
    origin = f"overproof.dev/{name}/{run[:ORIGIN_DIGITS]}"
    public = signer.log_key().public_key().public_bytes_raw()
    predicate["log"] = NoteKey(origin, public).vkey
    predicates.read(predicates.Release, predicate, "the release statement")
    return Statement(predicates.type_uri("release"), subjects, predicate)


def _heads(statements: Sequence[tuple[str, Statement]]) -> list[DatasetHead]:
    found = []
    for _, statement in statements:
        if statement.predicate_type == predicates.type_uri("certificate"):
            tree = predicates.read(Certificate, statement.predicate, "the certificate").tree
            about = statement.subjects[0]
            found.append(
                DatasetHead(
                    name=about.name.partition("/")[0],
                    sha256=about.sha256,
                    size=tree.size,
                    head=tree.head,
                )
            )
    return found


def seal(
    release: Path,
    statements: Sequence[tuple[str, Statement]],
    final: Statement,
    signer: PrivateKey,
) -> list[Path]:
    """Sign and log statements and write them, `final` as the release statement.

    Raises:
        StageError: the disk is full or the folder cannot be written.
    """
    first = FIRST
    while len(statements) > 9 * first:
        first *= 10
    named = {
        f"{PROOF}{number}-{label}{BUNDLE}": statement
        for number, (label, statement) in enumerate(statements, start=first)
    }
    named[RELEASE] = final
    bundles = {file: sign(named[file].encode(), signer).encode() for file in sorted(named)}
    origin = NoteKey.parse(final.predicate["log"]).name
    checkpoint, proofs = write_log(list(bundles.values()), origin, signer.log_key())
    content = {CHECKPOINT: checkpoint}
    content |= {
        log_proof_of(file): proof.encode() for file, proof in zip(bundles, proofs, strict=True)
    }
    return _replace_proof(release, content | bundles)


def _remove_cut_writes(release: Path) -> None:
    """What a killed run was writing into `proof/`: no part of the release."""
    with disk_errors(release):
        for stale in (release / PROOF).glob(f".*{TEMPORARY}"):
            stale.unlink()


def _replace_proof(release: Path, content: Mapping[str, bytes]) -> list[Path]:
    with disk_errors(release):
        (release / PROOF).mkdir(exist_ok=True)
        for name in Folder.list(release).files:
            if is_bundle(name) or is_log(name):
                (release / name).unlink()
        for name, data in content.items():
            write_atomic(release / name, data)
    return [release / name for name in content]
