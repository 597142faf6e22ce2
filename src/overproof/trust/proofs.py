"""Everything that is stored in `proof/`: signed statements, the log checkpoint, log proofs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from overproof.core.artifact import MANIFEST
from overproof.core.errors import TrustError
from overproof.trust import predicates
from overproof.trust.bundle import MAX_BUNDLE_BYTES, Bundle
from overproof.trust.folder import Folder
from overproof.trust.predicates import PROVENANCE, Release
from overproof.trust.statement import Stage, Statement, read_stage
from overproof.trust.strict import shown, step

PROOF = "proof/"
BUNDLE = ".sigstore.json"
LOG_PROOF = ".tlog-proof"
CHECKPOINT = "proof/checkpoint"
RELEASE = f"{PROOF}release{BUNDLE}"
MAX_STATEMENTS = 10_000  # a release has about a dozen; more only wastes the reader's time

View = TypeVar("View")


def is_bundle(name: str) -> bool:
    """Whether a release's file is a signed statement."""
    return name.startswith(PROOF) and "/" not in name[len(PROOF) :] and name.endswith(BUNDLE)


def is_log(name: str) -> bool:
    """Whether a release's file is the log checkpoint or a log proof."""
    inside = name.startswith(PROOF) and "/" not in name[len(PROOF) :]
    return name == CHECKPOINT or (inside and name.endswith(LOG_PROOF))


def log_proof_of(bundle: str) -> str:
    """The file that holds a statement's log proof."""
    return bundle.removesuffix(BUNDLE) + LOG_PROOF


@dataclass(frozen=True)
class Signed:
    """One statement in its file.

    Attributes:
        file: its name in the release.
        data: the file's bytes, which are the log entry.
        view: the predicate as read: a `Stage`, or a model of `predicates`.
    """

    file: str
    data: bytes
    bundle: Bundle
    statement: Statement
    view: object

    @property
    def about(self) -> str:
        """SHA-256 of the manifest that a statement of our own is about."""
        return self.statement.subjects[0].sha256


@dataclass(frozen=True)
class Proofs:
    """All statements of a release, sorted by file name, which is also their order in the log."""

    signed: tuple[Signed, ...]
    release_file: Signed
    release: Release

    def of(self, model: type[View]) -> Iterator[tuple[Signed, View]]:
        """The statements of one kind with their predicate."""
        for item in self.signed:
            if isinstance(item.view, model):
                yield item, item.view


def read_proofs(folder: Folder) -> Proofs:
    """Read every statement, before any is believed.

    Raises:
        TrustError: step 1; malformed, of another version, twice, or no release statement.
    """
    files = [name for name in folder.files if is_bundle(name)]
    if RELEASE not in files:
        raise TrustError(
            "the release has no release statement",
            step=1,
            details=[f"{RELEASE}: missing"],
            hint=None if files else "is this the folder that holds proof/?",
        )
    if len(files) > MAX_STATEMENTS:
        raise TrustError(f"more than {MAX_STATEMENTS} statements", step=1)
    found: list[Signed] = []
    owner: dict[Hashable, str] = {}
    for name in files:
        with step(1, name):
            signed = read_one(name, folder.read(name, MAX_BUNDLE_BYTES))
            for key in _identities(signed):
                if key in owner:
                    raise TrustError("says again what another says", details=[f"also {owner[key]}"])
                owner[key] = name
        found.append(signed)
    last = next(item for item in found if item.file == RELEASE)
    if not isinstance(last.view, Release):
        raise TrustError(
            "the release statement is of another type",
            step=1,
            details=[f"{RELEASE}: got {shown(last.statement.predicate_type)}"],
        )
    return Proofs(tuple(found), last, last.view)


def read_one(name: str, data: bytes) -> Signed:
    """Read one statement's file.

    Raises:
        TrustError: malformed, of another version, or with subjects that its type does not have.
    """
    bundle = Bundle.parse(data)
    statement = Statement.parse(bundle.payload)
    if statement.predicate_type == PROVENANCE:
        return Signed(name, data, bundle, statement, read_stage(statement))
    model = predicates.MODELS[statement.predicate_type]
    view = predicates.read(model, statement.predicate, "the predicate")
    one_manifest = len(statement.subjects) == 1 and statement.subjects[0].name.endswith(
        f"/{MANIFEST}"
    )
    if not isinstance(view, Release) and not one_manifest:
        raise TrustError("the subject of such a statement is one artifact's manifest")
    return Signed(name, data, bundle, statement, view)


def _identities(signed: Signed) -> list[Hashable]:
    """What only one statement may speak about; two are refused, as they may contradict."""
    view = signed.view
    match view:
        case Stage():
            return [("stage", view.name), ("manifest", view.sha256)]
        case Release():
            return ["release"]
        case predicates.TermsVerdict():
            return [("terms", view.teacher.sha256, view.channel, view.use)]
        case predicates.ParityReceipt():
            return [("parity", signed.about, view.target)]
        case _:
            return [(signed.statement.predicate_type, signed.about)]
