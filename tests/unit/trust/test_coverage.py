from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trust_release

from overproof.core.artifact import Resource
from overproof.core.errors import TrustError
from overproof.trust.chain import walk
from overproof.trust.coverage import Texts, check_parity, check_terms, cover, is_spdx
from overproof.trust.folder import Folder
from overproof.trust.predicates import ParityReceipt, TermsVerdict, read
from overproof.trust.proofs import read_proofs
from overproof.trust.verify import verify

FILES = {
    "proof/NOTICE": "Contains  or\nderives from X. Policy: https://x. 700,000,000 users.",
    "README.md": "# Llama-X\nBuilt with\nLlama. Policy: https://x. Up to 700,000,000 users.",
    "proof/licences/MIT.txt": "MIT License. " + "Permission is hereby granted. " * 30,
}


def texts(name: str = "Llama-X", **files: str | None) -> Texts:
    given = FILES | files
    found = {key: value for key, value in given.items() if value is not None}
    return Texts(name, frozenset(found), found.__getitem__)


def duty(kind: str, value: str, *, done: bool = True) -> TermsVerdict:
    row = {"id": "x", "kind": kind, "value": value, "done": done}
    return read(TermsVerdict, {**trust_release.terms(), "obligations": [row]}, "it")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("name_prefix", "Llama"),
        ("notice", "Contains or derives from X."),
        ("card_text", "Built with Llama"),
        ("license_copy", "MIT"),
        ("acceptable_use", "https://x"),
        ("propagate_terms", "Policy: https://x"),
        ("user_limit", "700000000"),
    ],
)
def test_obligations_are_looked_up(kind: str, value: str) -> None:
    assert check_terms("f", duty(kind, value), texts()) == 1
    nothing = texts("other", **dict.fromkeys(FILES))
    with pytest.raises(TrustError, match="does not show it"):
        check_terms("f", duty(kind, value), nothing)


@pytest.mark.parametrize(
    ("kind", "value", "files"),
    [
        ("name_prefix", "llama", {}),
        ("notice", "something else", {}),
        ("card_text", "Built with Qwen", {}),
        ("license_copy", "Apache-2.0", {}),
        ("license_copy", "MIT AND Apache-2.0", {}),
        ("license_copy", "not a ( licence", {}),
        ("license_copy", "()", {}),
        ("license_copy", "MIT", {"proof/licences/MIT.txt": "MIT"}),
        ("acceptable_use", "https://x", {"README.md": "nothing"}),
        ("acceptable_use", "https://x", {"proof/NOTICE": "nothing"}),
        ("notice", "Contains", {"proof/NOTICE": None, "model/NOTICE": "Contains"}),
        ("user_limit", "700000001", {}),
        ("user_limit", "many", {}),
        ("user_limit", "", {}),
    ],
)
def test_obligations_not_met(kind: str, value: str, files: dict[str, str]) -> None:
    with pytest.raises(TrustError, match="does not show it"):
        check_terms("f", duty(kind, value), texts(**files))


def test_what_cannot_be_looked_up_is_taken_at_its_word() -> None:
    assert check_terms("f", duty("dance", "well"), texts()) == 0
    with pytest.raises(TrustError, match="is open"):
        check_terms("f", duty("dance", "well", done=False), texts())


@pytest.mark.parametrize("word", ["deny", "needs_approval", "unknown"])
def test_verdicts_that_do_not_permit(word: str) -> None:
    for row in (trust_release.terms()["row"], None):
        verdict = read(TermsVerdict, {**trust_release.terms(), "verdict": word, "row": row}, "it")
        with pytest.raises(TrustError, match=f"f: {word} for 'tiny-llama'"):
            check_terms("f", verdict, texts())


def test_a_verdict_on_another_use() -> None:
    verdict = read(TermsVerdict, {**trust_release.terms(), "use": "read-the-card"}, "it")
    with pytest.raises(TrustError, match="another use"):
        check_terms("f", verdict, texts())


@pytest.mark.parametrize(
    "text",
    ["MIT", "Apache-2.0 OR MIT", "GPL-2.0-only WITH Classpath-exception-2.0", "LicenseRef-Owned"],
)
def test_spdx(text: str) -> None:
    assert is_spdx(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "NONE",
        "NOASSERTION",
        "unknown",
        "MIT AND",
        "(others)",
        "MIT, Apache-2.0",
        "()",
        "MIT AND ()",
        "(MIT OR " * 100,
        "(" * 3000,
    ],
)
def test_not_spdx(text: str) -> None:
    assert not is_spdx(text)


@pytest.mark.parametrize(
    "fields", [{"kl_nats_per_token": 0.021}, {"top1_agreement": 0.94}, {"max_kl": 0.001}]
)
def test_parity_bounds(fields: dict[str, float]) -> None:
    check_parity("f", read(ParityReceipt, trust_release.PARITY, "it"))
    with pytest.raises(TrustError, match="more than its receipt allows"):
        check_parity("f", read(ParityReceipt, {**trust_release.PARITY, **fields}, "it"))


def certified(made: trust_release.Synthetic) -> dict[str, Any]:
    value: dict[str, Any] = made.predicates[0][2]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(records=7), "are not 7 records"),
        (lambda c: c.update(licences={"MIT": 4}), "do not add up to 5"),
        (lambda c: c.update(licences={}), "do not add up to 5"),
        (lambda c: c.update(licences={"": 5}), "not an SPDX"),
        (lambda c: c["tree"].update(size=4), "has 4 leaves"),
        (lambda c: c["source"].pop("sha256"), "not an input"),
    ],
)
def test_certificates(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    made = trust_release.make(tmp_path)
    change(certified(made))
    made.attest()
    with pytest.raises(TrustError, match=message) as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 6
    assert "15-certificate-train" in caught.value.render()


def test_a_certificate_that_is_not_the_datasets_own(tmp_path: Path) -> None:
    """Edited after it was made: everything adds up, but it is no longer the stage's file."""
    made = trust_release.make(tmp_path)
    certified(made).update(licences={"MIT": 5})
    made.attest()
    with pytest.raises(TrustError, match="not the one in its dataset") as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 6


@pytest.mark.parametrize(
    ("kind", "about", "message"),
    [("certificate", "signals", "do not agree"), ("parity-receipt", "train", "no build")],
)
def test_a_statement_about_the_wrong_kind_of_stage(
    tmp_path: Path, kind: str, about: str, message: str
) -> None:
    made = trust_release.make(tmp_path)
    predicate = certified(made) if kind == "certificate" else trust_release.PARITY
    extra = (kind, made.named(about), predicate)
    trust_release.Synthetic(
        made.release, made.artifacts, (*made.predicates, extra), made.key
    ).attest()
    with pytest.raises(TrustError, match=message) as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 6


def without_receipt(made: trust_release.Synthetic) -> trust_release.Synthetic:
    kept = tuple(row for row in made.predicates if row[0] != "parity-receipt")
    return replace(made, predicates=kept)


def test_a_build_without_a_parity_receipt(tmp_path: Path) -> None:
    made = without_receipt(trust_release.make(tmp_path))
    made.attest()
    with pytest.raises(TrustError, match="a build without a parity receipt") as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 6
    assert "export/gguf-q8_0/model.gguf" in caught.value.render()


def test_a_receipt_of_a_build_that_is_not_here(tmp_path: Path) -> None:
    made = trust_release.make(tmp_path)
    row = ("parity-receipt", made.named("export"), {**trust_release.PARITY, "target": "gguf-f16"})
    replace(made, predicates=(*made.predicates, row)).attest()
    with pytest.raises(TrustError, match="a build that is not here") as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 6
    assert "no file in export/gguf-f16/" in caught.value.render()


def test_a_receipt_of_another_target_or_of_another_stage_is_none(tmp_path: Path) -> None:
    made = trust_release.make(tmp_path)
    other = trust_release.artifact(
        tmp_path / "store", "export", "other", {"student": made.named("student")},
        {"gguf-q8_0/model.gguf": b"another build"}, trust_release.PARITY,
    )  # fmt: skip
    made = without_receipt(replace(made, artifacts=(*made.artifacts, other)))
    for about, target in ((made.named("export"), "gguf-f16"), (other, "gguf-q8_0")):
        row = ("parity-receipt", about, {**trust_release.PARITY, "target": target})
        again = replace(made, predicates=(*made.predicates, row))
        shutil.rmtree(again.release / "proof")
        trust_release.fill(again.release, {})
        again.attest()
        with pytest.raises(TrustError, match="a build without a parity receipt") as caught:
            verify(again.release, again.key.public)
        assert "export/gguf-q8_0/model.gguf" in caught.value.render()


def test_equal_files_of_two_builds_each_count_for_their_own_stage(tmp_path: Path) -> None:
    made = trust_release.make(tmp_path)
    flat = trust_release.artifact(
        tmp_path / "store", "export", "flat", {"student": made.named("student")},
        {"gguf-q8_0/model.gguf": b"GGUF build", "model.gguf": b"GGUF build"}, {},
    )  # fmt: skip
    trust_release.write(made.release / "export/flat/model.gguf", b"GGUF build")
    row = ("parity-receipt", flat, {**trust_release.PARITY, "target": "flat"})
    made = replace(made, artifacts=(*made.artifacts, flat), predicates=(*made.predicates, row))
    made.attest()
    assert verify(made.release, made.key.public).exit_code == 0


def test_counts(sealed: trust_release.Synthetic) -> None:
    folder = Folder.list(sealed.release)
    proofs = read_proofs(folder)
    found = cover(proofs, walk(proofs), folder)
    assert (found.rechecked, found.trusted) == (6, 0)
    assert [name for name, _ in found.certificates] == ["train"]
    assert [receipt.target for receipt in found.parity] == ["gguf-q8_0"]


def with_a_base(folder: Path, *, judged: bool) -> trust_release.Synthetic:
    made = trust_release.make(folder)
    base = Resource("base", "tiny-base", "file:tiny-base", "44" * 32)
    signals = made.named("signals")
    weights = {"model.safetensors": b"student weights", "config.json": b'{"layers":2}'}
    student = trust_release.artifact(
        folder / "store", "student", "cut", {"signals": signals, "base": base}, weights, {}
    )
    build = trust_release.artifact(
        folder / "store", "export", "built", {"student": student},
        {"gguf-q8_0/model.gguf": b"GGUF build"}, trust_release.PARITY,
    )  # fmt: skip
    verdict = {**trust_release.terms(), "teacher": {"name": "tiny-base", "sha256": base.sha256}}
    kept = [one for one in made.predicates if one[1].path.name in ("train", "signals")]
    made = replace(
        made,
        artifacts=(made.named("train"), signals, student, build),
        predicates=(
            *kept,
            *([("terms-verdict", signals, verdict)] if judged else []),
            ("parity-receipt", build, trust_release.PARITY),
        ),
    )
    made.attest()
    return made


def test_a_base_needs_a_verdict_as_a_teacher_does(tmp_path: Path) -> None:
    made = with_a_base(tmp_path / "judged", judged=True)
    shown = verify(made.release, made.key.public)
    assert shown.exit_code == 0
    assert "base tiny-base" in [claim.claim for claim in shown.claims]
    made = with_a_base(tmp_path / "not", judged=False)
    with pytest.raises(TrustError, match="a base without a terms verdict") as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 6
