"""Step 5: from the released files back to sources, teachers and code, without a loose end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from overproof.core.contract import ORIGINS
from overproof.core.errors import TrustError
from overproof.trust.predicates import Dependency
from overproof.trust.proofs import Proofs
from overproof.trust.statement import Stage
from overproof.trust.strict import shown

SOURCE, DATASET = "source", "dataset"
ENDS = (SOURCE, *ORIGINS, "code")  # kinds of resources where the walk may end
MODEL, EXPORT = "model/", "export/"
MODEL_KIND, EXPORT_KIND, SAMPLES = "student", "export", "samples"


@dataclass(frozen=True)
class Chain:
    """What the walk met.

    Attributes:
        stages: every stage, in the order of the release statement.
        ends: the resources where the walk ended, one for each digest and kind.
        model: the stage that the files in `model/` came from.
        builds: the stages that the files in `export/` came from.
    """

    stages: tuple[Stage, ...]
    ends: tuple[Dependency, ...]
    model: Stage | None
    builds: tuple[Stage, ...]

    def origins(self) -> list[Dependency]:
        """Every teacher and every base met."""
        return [end for end in self.ends if end.annotations.kind in ORIGINS]

    def datasets(self) -> list[Stage]:
        """Every dataset met."""
        return [stage for stage in self.stages if stage.kind == DATASET]


def walk(proofs: Proofs) -> Chain:
    """Walk the dependencies of every stage that the release statement names.

    1. The stages named and the stages stated are the same, by name and manifest digest.
    2. Every dependency is one of these stages, by digest, or a resource of a kind that ends;
       sources are read by datasets alone, which certify them.
    3. Every statement of our own is about one of these stages.
    4. `model/` holds files of one student stage, `export/` files of export stages made from it.

    Raises:
        TrustError: a rule is broken; `details` name the file.
    """
    # 1.
    stages = _named_stages(proofs)
    files = {stage.sha256: item.file for item, stage in proofs.of(Stage)}
    # 2.
    ends: dict[tuple[str, str], Dependency] = {}
    for stage in stages.values():
        for item in stage.inputs:
            file = files[stage.sha256]
            if not _is_stage(item, stages, file):
                if item.annotations.kind == SOURCE and stage.kind != DATASET:
                    raise TrustError(
                        "a source that no dataset certifies",
                        details=[f"{file}: {shown(item.name)!r}, read by a {shown(stage.kind)}"],
                    )
                ends.setdefault((item.digest.sha256, item.annotations.kind), item)
    # 3.
    _check_subjects(proofs, stages)
    # 4.
    model = _model(proofs, stages.values())
    builds = _builds(proofs, stages, model)
    return Chain(tuple(stages.values()), tuple(ends.values()), model, builds)


def _named_stages(proofs: Proofs) -> dict[str, Stage]:
    stated = {stage.sha256: (item.file, stage) for item, stage in proofs.of(Stage)}
    named = {row.sha256: row.name for row in proofs.release.stages}
    wrong = [
        f"{file}: stage {shown(stage.name)!r} is not named by the release statement"
        for sha256, (file, stage) in stated.items()
        if named.get(sha256) != stage.name
    ]
    wrong += [
        f"{proofs.release_file.file}: names stage {shown(row.name)!r}, which no statement describes"
        for row in proofs.release.stages
        if row.sha256 not in stated
    ]
    if wrong or len(named) != len(proofs.release.stages):
        raise TrustError(
            "the release statement and the stages do not agree",
            details=wrong or [f"{proofs.release_file.file}: names a stage twice"],
        )
    return {sha256: stated[sha256][1] for sha256 in named}


def _is_stage(item: Dependency, stages: Mapping[str, Stage], file: str) -> bool:
    """Whether an input is a stage; False where the walk may end, an error where it may not."""
    sha256, kind, name = item.digest.sha256, item.annotations.kind, item.annotations.name
    stage = stages.get(sha256)
    if stage is not None:
        if (stage.kind, stage.name) != (kind, name):
            raise TrustError(
                "an input is called otherwise than the stage that it is",
                details=[
                    f"{file}: input {shown(item.name)!r} is called {shown(kind)} {shown(name)!r}",
                    f"its digest is that of {stage.kind} {shown(stage.name)!r}",
                ],
            )
        return True
    if item.uri is not None and kind in ENDS:
        return False
    raise TrustError(
        "a loose end: an input that no statement explains",
        details=[
            f"{file}: input {shown(item.name)!r} is {shown(kind)} {shown(name)!r}, sha256:{sha256}",
            f"wanted a stage of this release, or a resource of kind {', '.join(ENDS)}",
        ],
    )


def _check_subjects(proofs: Proofs, stages: Mapping[str, Stage]) -> None:
    for item in proofs.signed:
        if item is proofs.release_file or isinstance(item.view, Stage):
            continue
        stage, name = stages.get(item.about), item.statement.subjects[0].name
        if stage is None or name.partition("/")[0] != stage.name:
            raise TrustError(
                "a statement about something outside of the chain",
                details=[f"{item.file}: about {shown(name)!r}, sha256:{item.about}"],
            )


def _model(proofs: Proofs, stages: Iterable[Stage]) -> Stage | None:
    files = released(proofs, MODEL)
    if not files:
        return None
    candidates = [stage for stage in stages if stage.kind == MODEL_KIND]
    strange: list[str] = [f"there is no stage of kind {MODEL_KIND!r}"]
    for stage in candidates:
        strange = [name for name, sha256 in files.items() if stage.files.get(name) != sha256]
        if not strange:
            return stage
    raise TrustError(
        f"files in {MODEL} are not those of a {MODEL_KIND} stage",
        details=[f"{MODEL}{name}: not made by {candidates[-1].name!r}" for name in strange]
        if candidates
        else strange,
    )


def _builds(proofs: Proofs, stages: Mapping[str, Stage], model: Stage | None) -> tuple[Stage, ...]:
    candidates = [stage for stage in stages.values() if stage.kind == EXPORT_KIND]
    found: dict[str, Stage] = {}
    for name, sha256 in released(proofs, EXPORT).items():
        maker = next((stage for stage in candidates if made(stage, name, sha256)), None)
        if maker is None:
            raise TrustError(
                f"a file in {EXPORT} is not that of an {EXPORT_KIND} stage",
                details=[f"{EXPORT}{shown(name)}: no stage made it, sha256:{sha256}"],
            )
        found[maker.sha256] = maker
    for stage in found.values():
        if model is not None and model.sha256 not in _ancestors(stage, stages):
            raise TrustError(
                f"a build in {EXPORT} was not made from the model in {MODEL}",
                details=[f"stage {stage.name!r} does not depend on {model.name!r}"],
            )
    return tuple(found.values())


def released(proofs: Proofs, folder: str) -> dict[str, str]:
    """The release's files in a folder such as `export/`: name in the folder, and SHA-256."""
    return {
        subject.name.removeprefix(folder): subject.sha256
        for subject in proofs.release_file.statement.subjects
        if subject.name.startswith(folder)
    }


def made(stage: Stage, name: str, sha256: str) -> bool:
    """Whether an export stage made this file of `export/`."""
    # A stage may name its files with the target's folder, or leave it to the release.
    return sha256 in (stage.files.get(name), stage.files.get(name.partition("/")[2]))


def _ancestors(stage: Stage, stages: Mapping[str, Stage]) -> set[str]:
    seen: set[str] = set()
    todo = [stage]
    while todo:
        for item in todo.pop().inputs:
            sha256 = item.digest.sha256
            if sha256 in stages and sha256 not in seen:
                seen.add(sha256)
                todo.append(stages[sha256])
    return seen
