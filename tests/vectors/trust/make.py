"""Make the vectors that do not exist yet: python tests/vectors/trust/make.py"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "unit" / "trust"))

import trust_release as synthetic  # noqa: E402

from overproof.trust import attest, bundle, tlog  # noqa: E402
from overproof.trust.folder import Folder  # noqa: E402
from overproof.trust.proofs import RELEASE  # noqa: E402
from overproof.trust.statement import (  # noqa: E402
    Statement,
    Subject,
    own_statement,
    stage_statement,
)

Labelled = list[tuple[str, Statement]]


class Draft:
    """A release that is not sealed yet, so that each layer can be made wrong on purpose."""

    def __init__(self, folder: Path) -> None:
        made = synthetic.make(folder)
        self.release, self.key, self.made = made.release, made.key, made
        self.name = synthetic.NAME
        self.statements: Labelled = [(a.path.name, stage_statement(a)) for a in made.artifacts]
        self.statements += [
            (f"{short}-{about.path.name}", own_statement(short, about, predicate))
            for short, about, predicate in made.predicates
        ]

    def of(self, label: str) -> Statement:
        return dict(self.statements)[label]

    def put(self, label: str, statement: Statement) -> None:
        self.statements = [(n, statement if n == label else s) for n, s in self.statements]

    def drop(self, label: str) -> None:
        self.statements = [(n, s) for n, s in self.statements if n != label]

    def edit(self, label: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a predicate in place of a copy."""
        statement = self.of(label)
        predicate = json.loads(json.dumps(statement.predicate))
        change(predicate)
        self.put(label, replace(statement, predicate=predicate))

    def final(self) -> Statement:
        return attest.release_statement(
            Folder.list(self.release), self.statements, self.key, name=self.name, facts={}
        )

    def seal(self, final: Statement | None = None) -> None:
        attest.seal(self.release, self.statements, final or self.final(), self.key)

    def path(self, name: str) -> Path:
        return self.release / name

    def bundle(self, label: str) -> Path:
        return next(self.path("proof").glob(f"[0-9][0-9]-{label}.sigstore.json"))


SCENARIOS: dict[str, tuple[Callable[[Draft], None], dict[str, Any]]] = {}


def scenario(step: int | None = None, names: str = "") -> Any:
    def add(make: Callable[[Draft], None]) -> Callable[[Draft], None]:
        expected = {"outcome": "accepted"} if step is None else {"step": step, "names": names}
        SCENARIOS[make.__name__] = (make, expected)
        return make

    return add


@scenario()
def accepted(draft: Draft) -> None:
    draft.seal()


@scenario(1, "proof/10-train.sigstore.json")
def final_newline_fail(draft: Draft) -> None:
    draft.seal()
    file = draft.bundle("train")
    file.write_bytes(file.read_bytes() + b"\n")


@scenario(1, "proof/10-train.sigstore.json")
def field_added_to_bundle_fail(draft: Draft) -> None:
    draft.seal()
    file = draft.bundle("train")
    file.write_bytes(file.read_bytes()[:-1] + b',"z":0}')


@scenario(1, "https://example.org/other/v1")
def unknown_predicate_fail(draft: Draft) -> None:
    statement = replace(draft.of("train"), predicate_type="https://example.org/other/v1")
    draft.statements.append(("other", statement))
    draft.seal()


@scenario(1, "got version 2, this program reads version 1")
def release_of_another_version_fail(draft: Draft) -> None:
    draft.seal(replace(draft.final(), predicate_type="https://overproof.dev/release/v2"))


@scenario(1, "README.md")
def subject_twice_fail(draft: Draft) -> None:
    final = draft.final()
    draft.seal(replace(final, subjects=(*final.subjects, final.subjects[0])))


@scenario(1, "readme.MD")
def subjects_differ_in_case_fail(draft: Draft) -> None:
    final = draft.final()
    draft.seal(replace(final, subjects=(*final.subjects, Subject("readme.MD", "00" * 32))))


@scenario(1, "../outside")
def subject_leaves_the_folder_fail(draft: Draft) -> None:
    final = draft.final()
    draft.seal(replace(final, subjects=(*final.subjects, Subject("../outside", "00" * 32))))


@scenario(1, "proof/12-student.sigstore.json")
def manifest_not_given_back_fail(draft: Draft) -> None:
    draft.edit("student", lambda p: p["buildDefinition"]["externalParameters"].update(seed=1))
    draft.seal()


@scenario(1, "also proof/10-train.sigstore.json")
def stage_stated_twice_fail(draft: Draft) -> None:
    final = draft.final()
    draft.statements.append(("again", draft.of("train")))
    draft.seal(final)


@scenario(1, "the subject of such a statement is one artifact's manifest")
def statement_about_two_things_fail(draft: Draft) -> None:
    statement = draft.of("evaluation-student")
    more = (*statement.subjects, Subject("control/artifact.json", "77" * 32))
    draft.put("evaluation-student", replace(statement, subjects=more))
    draft.seal()


@scenario(1, "proof/release.sigstore.json: missing")
def no_release_statement_fail(draft: Draft) -> None:
    draft.seal()
    draft.path(RELEASE).unlink()


@scenario(2, "proof/12-student.sigstore.json")
def signed_by_another_fail(draft: Draft) -> None:
    draft.seal()
    other = bundle.sign(draft.of("student").encode(), synthetic.signing_key(b"other"))
    draft.bundle("student").write_bytes(replace(other, hint=draft.key.public.hint).encode())


@scenario(2, "proof/16-terms-verdict-signals.sigstore.json")
def statement_changed_after_signing_fail(draft: Draft) -> None:
    draft.seal()
    file = draft.bundle("terms-verdict-signals")
    old = bundle.Bundle.parse(file.read_bytes())
    file.write_bytes(replace(old, payload=old.payload.replace(b"1.b.i", b"9.z.z")).encode())


@scenario(3, "proof/19-late.sigstore.json: not in the log")
def statement_not_logged_fail(draft: Draft) -> None:
    draft.seal()
    late = replace(draft.of("evaluation-student"), subjects=draft.of("export").subjects[:1])
    draft.path("proof/19-late.sigstore.json").write_bytes(
        bundle.sign(late.encode(), draft.key).encode()
    )


@scenario(3, "10 entries, proof/ has 9 statements")
def statement_taken_away_fail(draft: Draft) -> None:
    draft.seal()
    file = draft.bundle("evaluation-student")
    file.unlink()
    Path(str(file).replace(".sigstore.json", ".tlog-proof")).unlink()


@scenario(3, "proof/12-student.sigstore.json")
def statements_swapped_fail(draft: Draft) -> None:
    draft.seal()
    one, two = draft.bundle("student"), draft.bundle("control")
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


@scenario(3, "got index 3, wanted 2")
def statements_renamed_fail(draft: Draft) -> None:
    draft.seal()
    pairs = [(draft.bundle("student"), draft.bundle("control"))]
    pairs += [tuple(Path(str(p).replace(".sigstore.json", ".tlog-proof")) for p in pairs[0])]
    for one, two in pairs:
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)


@scenario(3, "proof/checkpoint")
def checkpoint_of_another_key_fail(draft: Draft) -> None:
    draft.seal()
    file = draft.path("proof/checkpoint")
    text = tlog.Note.parse(file.read_bytes()).text
    other = synthetic.signing_key(b"other").log_key()
    forged = tlog.sign_note(text, text.split("\n")[0], other).encode()
    _replace_checkpoint(draft, forged)


@scenario(3, "got 2 signatures")
def checkpoint_with_unknown_witness_fail(draft: Draft) -> None:
    draft.seal()
    note = tlog.Note.parse(draft.path("proof/checkpoint").read_bytes())
    extra = tlog.NoteSignature("witness.example", b"abcd", b"\x00" * 64)
    _replace_checkpoint(draft, replace(note, signatures=(*note.signatures, extra)).encode())


def _replace_checkpoint(draft: Draft, data: bytes) -> None:
    draft.path("proof/checkpoint").write_bytes(data)
    for file in draft.path("proof").glob("*.tlog-proof"):
        proof = tlog.LogProof.parse(file.read_bytes())
        file.write_bytes(replace(proof, checkpoint=data).encode())


@scenario(4, "model/model.safetensors: got sha256:")
def file_changed_fail(draft: Draft) -> None:
    draft.seal()
    draft.path("model/model.safetensors").write_bytes(b"Student weights")


@scenario(4, "model/extra.py: not in the release statement")
def file_added_fail(draft: Draft) -> None:
    draft.seal()
    draft.path("model/extra.py").write_bytes(b"print()\n")


@scenario(4, "proof/NOTICE: missing")
def file_taken_away_fail(draft: Draft) -> None:
    draft.seal()
    draft.path("proof/NOTICE").unlink()


@scenario(4, "README.md: got sha256:")
def files_swapped_fail(draft: Draft) -> None:
    draft.seal()
    one, two = draft.path("README.md"), draft.path("report.json")
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


@scenario(4, "names 8 files, says 9")
def file_count_wrong_fail(draft: Draft) -> None:
    final = draft.final()
    final.predicate["files"] += 1
    draft.seal(final)


@scenario(5, "names a stage twice")
def stage_named_twice_fail(draft: Draft) -> None:
    final = draft.final()
    final.predicate["stages"].append(final.predicate["stages"][0])
    draft.seal(final)


@scenario(5, "names stage 'ghost', which no statement describes")
def stage_without_statement_fail(draft: Draft) -> None:
    final = draft.final()
    final.predicate["stages"].append({"name": "ghost", "sha256": "66" * 32})
    draft.seal(final)


@scenario(5, "input 'signals' is signals 'signals'")
def loose_end_fail(draft: Draft) -> None:
    draft.drop("terms-verdict-signals")
    draft.drop("signals")
    draft.seal()


@scenario(5, "stage 'control' is not named")
def stage_not_named_fail(draft: Draft) -> None:
    final = draft.final()
    final.predicate["stages"] = [
        row for row in final.predicate["stages"] if row["name"] != "control"
    ]
    draft.seal(final)


@scenario(5, "model/model.safetensors: not made by")
def model_of_no_stage_fail(draft: Draft) -> None:
    draft.path("model/model.safetensors").write_bytes(b"weights from elsewhere")
    draft.seal()


@scenario(5, "stage 'export' does not depend on 'control'")
def build_of_another_model_fail(draft: Draft) -> None:
    draft.path("model/model.safetensors").write_bytes(b"control weights")
    draft.seal()


@scenario(5, "export/gguf-q8_0/model.gguf: no stage made it")
def build_of_no_stage_fail(draft: Draft) -> None:
    draft.path("export/gguf-q8_0/model.gguf").write_bytes(b"GGUF from elsewhere")
    draft.seal()


@scenario(5, "about 'nothing/artifact.json'")
def statement_about_nothing_fail(draft: Draft) -> None:
    statement = draft.of("evaluation-student")
    draft.put(
        "evaluation-student",
        replace(statement, subjects=(Subject("nothing/artifact.json", "00" * 32),)),
    )
    draft.seal()


@scenario(5, "about 'control/artifact.json'")
def statement_about_a_misnamed_stage_fail(draft: Draft) -> None:
    statement = draft.of("evaluation-student")
    subject = replace(statement.subjects[0], name="control/artifact.json")
    draft.put("evaluation-student", replace(statement, subjects=(subject,)))
    draft.seal()


@scenario(6, "teacher 'tiny-llama'")
def teacher_without_terms_fail(draft: Draft) -> None:
    draft.drop("terms-verdict-signals")
    draft.seal()


@scenario(6, "deny for 'tiny-llama'")
def terms_deny_fail(draft: Draft) -> None:
    draft.edit("terms-verdict-signals", lambda p: p.update(verdict="deny"))
    draft.seal()


@scenario(6, "policy: acceptable_use")
def obligation_open_fail(draft: Draft) -> None:
    draft.edit("terms-verdict-signals", lambda p: p["obligations"][4].update(done=False))
    draft.seal()


@scenario(6, "name: name_prefix 'Llama'")
def name_without_prefix_fail(draft: Draft) -> None:
    draft.name = "support-flash"
    draft.seal()


@scenario(6, "notice: notice")
def notice_without_its_text_fail(draft: Draft) -> None:
    draft.path("proof/NOTICE").write_bytes(b"nothing to see\n")
    draft.seal()


@scenario(6, "licence: license_copy 'Apache-2.0'")
def licence_copy_missing_fail(draft: Draft) -> None:
    draft.path("proof/licences/Apache-2.0.txt").unlink()
    draft.path("proof/licences").rmdir()
    draft.seal()


@scenario(6, "dataset 'train'")
def dataset_without_certificate_fail(draft: Draft) -> None:
    draft.drop("certificate-train")
    draft.seal()


@scenario(6, "'whatever' is not an SPDX licence expression")
def licence_not_spdx_fail(draft: Draft) -> None:
    draft.edit("certificate-train", lambda p: p.update(licences={"whatever": 5}))
    draft.seal()


@scenario(6, "is not an input of the dataset")
def certificate_of_another_source_fail(draft: Draft) -> None:
    draft.edit("certificate-train", lambda p: p["source"].update(sha256="44" * 32))
    draft.seal()


@scenario(6, "its record tree is not the one in the release statement")
def record_tree_differs_fail(draft: Draft) -> None:
    final = draft.final()
    draft.edit("certificate-train", lambda p: p["tree"].update(head="55" * 32))
    draft.seal(final)


@scenario(6, "KL 0.5 (at most 0.02)")
def build_beyond_its_bound_fail(draft: Draft) -> None:
    draft.edit("parity-receipt-export", lambda p: p.update(kl_nats_per_token=0.5))
    draft.seal()


@scenario(6, "export/gguf-q8_0/model.gguf: no receipt of target 'gguf-q8_0'")
def build_without_receipt_fail(draft: Draft) -> None:
    draft.drop("parity-receipt-export")
    draft.seal()


def write_vector(name: str) -> None:
    make, expected = SCENARIOS[name]
    with tempfile.TemporaryDirectory() as folder:
        draft = Draft(Path(folder))
        make(draft)
        files = {
            file: draft.path(file).read_text(encoding="utf-8")
            for file in Folder.list(draft.release).files
        }
    (HERE / name).mkdir()
    (HERE / name / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
    text = json.dumps(files, indent=1, ensure_ascii=False) + "\n"
    (HERE / name / "release.json").write_text(text, encoding="utf-8")


def main() -> None:
    (HERE / "signer.pub").write_bytes(synthetic.signing_key().public.pem)
    for name in SCENARIOS:
        if not (HERE / name).exists():
            write_vector(name)


if __name__ == "__main__":
    main()
