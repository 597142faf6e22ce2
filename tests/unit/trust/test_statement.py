from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trust_release

from overproof.core.artifact import Artifact
from overproof.core.digest import canonical
from overproof.core.errors import StageError, TrustError, UsageError
from overproof.trust.predicates import PROVENANCE
from overproof.trust.statement import (
    Statement,
    own_statement,
    read_stage,
    stage_statement,
)


@pytest.fixture(scope="module")
def signals(sealed: trust_release.Synthetic) -> Artifact:
    return sealed.named("signals")


def test_a_stage_says_all_that_its_manifest_says(signals: Artifact) -> None:
    statement = stage_statement(signals)
    assert Statement.parse(statement.encode()) == statement
    stage = read_stage(statement)
    assert (stage.name, stage.kind, stage.sha256) == ("signals", "signals", signals.sha256)
    assert stage.facts == {"tokens": 3}
    assert stage.finished == "2026-11-24T10:00:07Z"
    assert set(stage.files) == {"shard-0.safetensors"}
    predicate = statement.predicate
    assert predicate["buildDefinition"]["buildType"] == "https://overproof.dev/stage/signals/v1"
    assert predicate["buildDefinition"]["externalParameters"] == {"seed": 0}
    found = {item["name"]: item for item in predicate["buildDefinition"]["resolvedDependencies"]}
    assert found["teacher"]["uri"] == "file:tiny-llama.gguf"
    assert found["teacher"]["annotations"] == {"kind": "teacher", "name": "tiny-llama"}
    assert "uri" not in found["data"]
    assert predicate["runDetails"]["builder"]["version"]["overproof"]


def test_times_do_not_change_the_digest(signals: Artifact) -> None:
    later = replace(
        signals,
        manifest={
            **signals.manifest,
            "times": {**trust_release.TIMES, "finished": "2027-01-01T00:00:00Z"},
        },
    )
    assert read_stage(stage_statement(later)).sha256 == signals.sha256


def change(value: dict[str, Any], path: list[Any], new: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(value))
    node = copy
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = new
    return copy


BUILD = ["buildDefinition"]
DEPENDENCY = [*BUILD, "resolvedDependencies", 0]


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ([*BUILD, "buildType"], "https://overproof.dev/stage/student/v1"),
        ([*BUILD, "buildType"], "https://overproof.dev/stage/signals/v2"),
        ([*BUILD, "buildType"], "https://example.org/stage/signals/v1"),
        ([*BUILD, "externalParameters"], {"seed": 1}),
        ([*BUILD, "externalParameters"], []),
        ([*BUILD, "internalParameters"], {"hidden": 1}),
        ([*BUILD, "more"], {}),
        ([*BUILD, "resolvedDependencies"], []),
        ([*DEPENDENCY, "name"], "other"),
        ([*DEPENDENCY, "uri"], "file:other"),
        ([*DEPENDENCY, "uri"], None),
        ([*DEPENDENCY, "digest", "sha256"], "0" * 64),
        ([*DEPENDENCY, "digest", "sha256"], "0" * 63),
        ([*DEPENDENCY, "digest", "md5"], "0" * 32),
        ([*DEPENDENCY, "annotations", "kind"], "source"),
        (["runDetails", "builder", "id"], "https://example.org/builder"),
        (["runDetails", "builder", "version", "overproof"], "9.9.9"),
        (["runDetails", "builder", "version"], {}),
        (["runDetails", "metadata", "invocationId"], "0" * 64),
        (["runDetails", "metadata", "startedOn"], 5),
        (["runDetails", "byproducts"], []),
        (["runDetails", "byproducts", 0, "annotations"], {"tokens": 4}),
        (["runDetails", "byproducts", 0, "digest", "sha256"], "0" * 64),
        (["runDetails", "byproducts", 1, "annotations"], {"shard-0.safetensors": 8}),
        (["runDetails", "byproducts", 1, "name"], "facts"),
    ],
)
def test_a_changed_stage_is_noticed(signals: Artifact, path: list[Any], new: Any) -> None:
    statement = stage_statement(signals)
    with pytest.raises(TrustError):
        read_stage(replace(statement, predicate=change(statement.predicate, path, new)))


def test_changed_subjects_are_noticed(signals: Artifact) -> None:
    statement = stage_statement(signals)
    manifest, shard = statement.subjects
    for subjects in (
        (manifest,),
        (shard,),
        (manifest, replace(shard, name="signals/other")),
        (manifest, replace(shard, name="other/shard-0.safetensors")),
        (manifest, replace(shard, sha256="0" * 64)),
        (replace(manifest, sha256="0" * 64), shard),
    ):
        with pytest.raises(TrustError):
            read_stage(replace(statement, subjects=subjects))


def payload(**fields: Any) -> bytes:
    value: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "a", "digest": {"sha256": "0" * 64}}],
        "predicateType": PROVENANCE,
        "predicate": {},
    }
    value |= fields
    return canonical({key: item for key, item in value.items() if item != "drop"})


def subject(name: Any, digest: Any = None, **more: Any) -> list[dict[str, Any]]:
    return [{"name": name, "digest": digest or {"sha256": "0" * 64}, **more}]


def test_the_smallest_statement() -> None:
    assert Statement.parse(payload()).subjects[0].name == "a"


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"5",
        payload(_type="https://in-toto.io/Statement/v0.1"),
        payload(_type="drop"),
        payload(predicate="drop"),
        payload(predicate=[]),
        payload(more=1),
        payload(predicateType="https://slsa.dev/provenance/v0.2"),
        payload(predicateType=5),
        payload(predicateType=["https://slsa.dev/provenance/v1"]),
        payload(subject=[]),
        payload(subject={}),
        payload(subject=["a"]),
        payload(subject=subject(5)),
        payload(subject=subject("a", {"sha512": "0" * 128})),
        payload(subject=subject("a", {"sha256": "0" * 64, "md5": "0"})),
        payload(subject=subject("a", {"sha256": "A" * 64})),
        payload(subject=subject("a", {"sha256": 5})),
        payload(subject=subject("a", "0" * 64)),
        payload(subject=subject("a", uri="file:a")),
        payload(subject=subject("a") + subject("a")),
        payload(subject=subject("a") + subject("A")),
        payload(subject=subject("/a")),
        payload(subject=subject("a/../b")),
        payload(subject=subject("a\\b")),
        payload() + b" ",
    ],
)
def test_statements_are_read_strictly(data: bytes) -> None:
    with pytest.raises(TrustError):
        Statement.parse(data)


def test_another_version_is_said_as_such() -> None:
    with pytest.raises(TrustError, match="another format version") as caught:
        Statement.parse(payload(predicateType="https://overproof.dev/certificate/v12"))
    assert "version 12" in caught.value.render()


def test_own_statements(signals: Artifact) -> None:
    statement = own_statement("terms-verdict", signals, trust_release.terms())
    assert statement.subjects[0].name == "signals/artifact.json"
    assert statement.subjects[0].sha256 == signals.sha256
    with pytest.raises(UsageError, match="known: certificate"):
        own_statement("certificates", signals, {})
    with pytest.raises(TrustError, match=r"verdict: Input should be 'allow'"):
        own_statement("terms-verdict", signals, {**trust_release.terms(), "verdict": "yes"})


def test_an_artifact_that_cannot_be_stated(signals: Artifact, tmp_path: Path) -> None:
    strange = replace(signals, manifest={**signals.manifest, "new_field": 1})
    with pytest.raises(StageError, match="cannot be put into a statement"):
        stage_statement(strange)
