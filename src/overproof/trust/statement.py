"""in-toto statements: the layer that says which files a predicate is about.

A stage's statement holds everything that its manifest holds, so that a reader can put the manifest
together again and compare its digest with the one that the next stage took as input. The chain of
stages is thereby a chain of hashes, not of names.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from overproof.core.artifact import FORMAT, MANIFEST, Artifact, manifest_digest
from overproof.core.digest import canonical, sha256_json
from overproof.core.errors import StageError, TrustError, UsageError
from overproof.trust import predicates
from overproof.trust.folder import check_name, check_names
from overproof.trust.predicates import BASE, PROVENANCE, VERSION, Dependency, Provenance
from overproof.trust.strict import SHA256_HEX, parse_canonical, shown

STATEMENT = "https://in-toto.io/Statement/v1"
BUILDER = f"{BASE}/builder/local/v1"
_OWN_TYPE = re.compile(re.escape(BASE) + r"/([a-z-]+)/v([0-9]{1,4})")
_STAGE_TYPE = re.compile(re.escape(BASE) + r"/stage/([a-z0-9_-]{1,64})/v([0-9]{1,4})")
SOURCE = "overproof-source-sha256"  # digest of the sources that a stage could run
IDENTITY = ("format", "kind", "inputs", "config", "config_sha256", "code")  # what names a run
Json = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A file by name and SHA-256."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Statement:
    """An in-toto Statement v1 with SHA-256 subjects."""

    predicate_type: str
    subjects: tuple[Subject, ...]
    predicate: Json

    def encode(self) -> bytes:
        """The payload of an envelope: RFC 8785."""
        return canonical(
            {
                "_type": STATEMENT,
                "subject": [
                    {"name": subject.name, "digest": {"sha256": subject.sha256}}
                    for subject in self.subjects
                ],
                "predicateType": self.predicate_type,
                "predicate": self.predicate,
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> Statement:
        """Read a payload strictly: canonical JSON, a known predicate type, plain unique names.

        Raises:
            TrustError: anything else; a version that this program does not read is named.
        """
        value = parse_canonical(data)
        if not isinstance(value, dict) or value.get("_type") != STATEMENT:
            got = value.get("_type") if isinstance(value, dict) else type(value).__name__
            raise TrustError(
                "not an in-toto statement", details=[f"got {shown(got)!r}, wanted {STATEMENT!r}"]
            )
        if set(value) != {"_type", "subject", "predicateType", "predicate"}:
            raise TrustError(
                "a statement has other fields", details=[f"got {shown(sorted(value))}"]
            )
        kind = _check_type(value["predicateType"])
        subjects = _subjects(value["subject"])
        if not isinstance(value["predicate"], dict):
            raise TrustError("a predicate is an object")
        return cls(kind, subjects, value["predicate"])


def _check_type(kind: object) -> str:
    if isinstance(kind, str) and kind in predicates.MODELS:
        return kind
    own = _OWN_TYPE.fullmatch(kind) if isinstance(kind, str) else None
    if own and own[1] in predicates.OWN:
        raise _other_version(f"{own[1]} statement", own[2])
    raise TrustError(
        "unknown predicate type",
        details=[f"got {shown(kind)!r}", f"wanted one of {', '.join(predicates.MODELS)}"],
    )


def _other_version(what: str, got: str) -> TrustError:
    return TrustError(
        f"a {what} of another format version",
        details=[f"got version {got}, this program reads version {VERSION}"],
        hint="verify this release with the version of Overproof that made it, or a newer one",
    )


def _subjects(rows: object) -> tuple[Subject, ...]:
    if not isinstance(rows, list) or not rows:
        raise TrustError("a statement has at least one subject")
    found = []
    for row in rows:
        name = row.get("name") if isinstance(row, dict) else None
        digest = row.get("digest") if isinstance(row, dict) else None
        sha256 = digest.get("sha256") if isinstance(digest, dict) else None
        if row != {"name": name, "digest": {"sha256": sha256}} or not isinstance(name, str):
            raise TrustError("a subject is a name and a SHA-256", details=[f"got {shown(row)}"])
        if not isinstance(sha256, str) or not SHA256_HEX.fullmatch(sha256):
            raise TrustError("a SHA-256 is 64 lowercase hex digits", details=[f"{shown(name)!r}"])
        found.append(Subject(name, sha256))
    check_names(subject.name for subject in found)
    return tuple(found)


@dataclass(frozen=True)
class Stage:
    """A stage as its statement describes it.

    Attributes:
        name: name of the artifact.
        kind: what it is, such as `dataset`.
        sha256: manifest digest, recomputed from the statement.
        files: file name within the artifact to SHA-256.
        inputs: what it was made from, all of it.
        finished: when, as its maker says.
    """

    name: str
    kind: str
    sha256: str
    files: Mapping[str, str]
    inputs: tuple[Dependency, ...]
    facts: Mapping[str, Any]
    finished: str


def own_statement(short: str, subject: Artifact, predicate: Json) -> Statement:
    """A statement of one of our own predicates about a whole artifact.

    Raises:
        UsageError: there is no such predicate type.
        TrustError: the predicate does not fit its schema.
    """
    if short not in predicates.OWN:
        raise UsageError(
            f"no predicate type {short!r}", details=[f"known: {', '.join(predicates.OWN)}"]
        )
    predicates.read(predicates.OWN[short], predicate, f"the {short} of {subject.path.name}")
    name = f"{subject.path.name}/{MANIFEST}"
    return Statement(predicates.type_uri(short), (Subject(name, subject.sha256),), predicate)


def stage_statement(artifact: Artifact) -> Statement:
    """SLSA Provenance v1 of a finished artifact.

    The subject `NAME/artifact.json` carries the manifest digest, times left out, and not the
    digest of that file's bytes: equal inputs give equal digests however long they took.

    Raises:
        StageError: the manifest holds something that the statement cannot give back.
    """
    manifest, name = artifact.manifest, check_name(artifact.path.name)
    files = manifest["files"]
    subjects = [Subject(f"{name}/{entry['name']}", entry["sha256"]) for entry in files]
    subjects.append(Subject(f"{name}/{MANIFEST}", artifact.sha256))
    subjects.sort(key=lambda subject: subject.name)
    predicate = {
        "buildDefinition": {
            "buildType": f"{BASE}/stage/{artifact.kind}/v{VERSION}",
            "externalParameters": manifest["config"],
            "internalParameters": {},
            "resolvedDependencies": [_dependency(row) for row in manifest["inputs"]],
        },
        "runDetails": {
            "builder": {
                "id": BUILDER,
                "version": _builder_version(manifest["code"]),
            },
            "metadata": {
                "invocationId": sha256_json({key: manifest[key] for key in IDENTITY}),
                "startedOn": manifest["times"]["started"],
                "finishedOn": manifest["times"]["finished"],
            },
            "byproducts": [
                _byproduct("facts", manifest["facts"]),
                _byproduct("files", {entry["name"]: entry["bytes"] for entry in files}),
            ],
        },
    }
    statement = Statement(PROVENANCE, tuple(subjects), predicate)
    try:
        read_stage(statement)
    except TrustError as error:
        raise StageError(
            f"artifact {artifact.path} cannot be put into a statement",
            details=[error.what, *error.details],
        ) from error
    return statement


def _dependency(row: Mapping[str, Any]) -> Json:
    uri = {"uri": row["uri"]} if "uri" in row else {}
    return {
        "name": row["role"],
        **uri,
        "digest": {"sha256": row["sha256"]},
        "annotations": {"kind": row["kind"], "name": row["name"]},
    }


def _byproduct(name: str, content: Json) -> Json:
    return {"name": name, "digest": {"sha256": sha256_json(content)}, "annotations": content}


def read_stage(statement: Statement) -> Stage:
    """Read a stage's statement and put its manifest together again.

    1. The predicate is SLSA Provenance of a stage type of this version.
    2. All subjects are files of one artifact; one of them is its manifest.
    3. The manifest made of subjects, parameters, dependencies and by-products has that digest,
       and the invocation ID is the digest of the part of it that names a run.

    Raises:
        TrustError: a rule is broken.
    """
    # 1.
    provenance = predicates.read(Provenance, statement.predicate, "the provenance")
    definition, details = provenance.build_definition, provenance.run_details
    kind = _stage_kind(definition.build_type)
    # 2.
    artifacts = {subject.name.partition("/")[0] for subject in statement.subjects}
    files = {subject.name.partition("/")[2]: subject.sha256 for subject in statement.subjects}
    if len(artifacts) != 1 or MANIFEST not in files:
        raise TrustError(
            "the subjects are not the files of one artifact",
            details=[f"got {shown(sorted(artifacts))}, wanted one folder with {MANIFEST}"],
        )
    wanted = files.pop(MANIFEST)
    # 3.
    manifest = _restore(provenance, kind, files)
    got = manifest_digest(manifest)
    if got != wanted:
        raise TrustError(
            "the statement does not give back the manifest that it names",
            details=[f"got sha256:{got}, wanted sha256:{wanted}"],
        )
    identity = sha256_json({key: manifest[key] for key in IDENTITY})
    if details.metadata.invocation_id != identity:
        raise TrustError(
            "the invocation ID is not the digest of kind, inputs, configuration and code",
            details=[f"got {shown(details.metadata.invocation_id)!r}, wanted {identity!r}"],
        )
    return Stage(
        name=artifacts.pop(),
        kind=kind,
        sha256=got,
        files=files,
        inputs=definition.resolved_dependencies,
        facts=manifest["facts"],
        finished=details.metadata.finished_on,
    )


def _builder_version(code: Json) -> dict[str, str]:
    version = {"overproof": code["version"], "python": platform.python_version()}
    return version | ({SOURCE: code["sha256"]} if "sha256" in code else {})


def _restore(provenance: Provenance, kind: str, files: Mapping[str, str]) -> Json:
    """The manifest, times left out, that a stage's statement was made from."""
    definition, details = provenance.build_definition, provenance.run_details
    byproducts = {item.name: item.annotations for item in details.byproducts}
    if len(details.byproducts) != 2 or set(byproducts) != {"facts", "files"}:
        raise TrustError("the by-products are `facts` and `files`")
    if any(item.digest.sha256 != sha256_json(item.annotations) for item in details.byproducts):
        raise TrustError("the digest of a by-product is not that of its content")
    return {
        "format": FORMAT,
        "kind": kind,
        "inputs": [_manifest_input(item) for item in definition.resolved_dependencies],
        "config": definition.external_parameters,
        "config_sha256": sha256_json(definition.external_parameters),
        "code": _code(details.builder.version),
        "facts": byproducts["facts"],
        "files": [
            {"name": name, "sha256": files[name], "bytes": byproducts["files"].get(name)}
            for name in sorted(files)
        ],
    }


def _code(version: Mapping[str, str]) -> Json:
    """The manifest's row; stages made before sources were digested have no digest."""
    row = {"name": "overproof", "version": version.get("overproof")}
    source = version.get(SOURCE)
    return row if source is None else {**row, "sha256": source}


def _stage_kind(build_type: str) -> str:
    match = _STAGE_TYPE.fullmatch(build_type)
    if not match:
        raise TrustError("not a stage of Overproof", details=[f"got {shown(build_type)!r}"])
    if match[2] != str(VERSION):
        raise _other_version(f"{match[1]} stage", match[2])
    return match[1]


def _manifest_input(item: Dependency) -> Json:
    row = {
        "role": item.name,
        "kind": item.annotations.kind,
        "name": item.annotations.name,
        "sha256": item.digest.sha256,
    }
    return row if item.uri is None else {**row, "uri": item.uri}
