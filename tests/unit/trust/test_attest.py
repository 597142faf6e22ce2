from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trust_release

from overproof.core.errors import TrustError, UsageError
from overproof.trust.attest import attest
from overproof.trust.folder import Folder
from overproof.trust.proofs import RELEASE, read_proofs
from overproof.trust.verify import verify


@pytest.fixture
def made(tmp_path: Path) -> trust_release.Synthetic:
    return trust_release.make(tmp_path)


def contents(release: Path) -> dict[str, bytes]:
    return {name: (release / name).read_bytes() for name in Folder.list(release).files}


def test_files_and_their_order(made: trust_release.Synthetic) -> None:
    written = made.attest()
    names = [path.relative_to(made.release).as_posix() for path in written]
    assert names[-1] == RELEASE
    assert set(names) == {name for name in contents(made.release) if name in names}
    assert [name for name in names if name.endswith(".sigstore.json")] == [
        "proof/10-train.sigstore.json",
        "proof/11-signals.sigstore.json",
        "proof/12-student.sigstore.json",
        "proof/13-control.sigstore.json",
        "proof/14-export.sigstore.json",
        "proof/15-certificate-train.sigstore.json",
        "proof/16-terms-verdict-signals.sigstore.json",
        "proof/17-evaluation-student.sigstore.json",
        "proof/18-parity-receipt-export.sigstore.json",
        RELEASE,
    ]


def test_deterministic_and_repeatable(made: trust_release.Synthetic, tmp_path: Path) -> None:
    made.attest()
    first = contents(made.release)
    made.attest()
    assert contents(made.release) == first
    other = trust_release.make(tmp_path / "again")
    other.attest()
    assert contents(other.release) == first


def test_an_earlier_proof_is_replaced(made: trust_release.Synthetic) -> None:
    made.attest()
    fewer = replace(made, predicates=tuple(p for p in made.predicates if p[0] != "evaluation"))
    fewer.attest()
    verify(made.release, made.key.public)
    assert not list(made.release.glob("proof/18-*"))


def test_the_release_statement(made: trust_release.Synthetic) -> None:
    made.attest()
    release = read_proofs(Folder.list(made.release)).release
    assert release.name == trust_release.NAME
    assert release.facts == {"note": "synthetic"}
    assert release.files == 8
    assert [row.name for row in release.stages] == [
        "train", "signals", "student", "control", "export",
    ]  # fmt: skip
    assert release.datasets[0].size == 5
    assert release.signer.encode() == made.key.public.pem


def test_two_releases_of_one_name_have_two_logs(made: trust_release.Synthetic) -> None:
    """A log must not sign two states that contradict each other."""
    made.attest()
    first = read_proofs(Folder.list(made.release)).release.log
    (made.release / "report.json").write_text("[]\n")
    made.attest()
    second = read_proofs(Folder.list(made.release)).release.log
    assert first.partition("+")[0] != second.partition("+")[0]
    assert first.rpartition("+")[2] == second.rpartition("+")[2]


def test_many_statements_still_sort(made: trust_release.Synthetic, tmp_path: Path) -> None:
    inputs = {"teacher": trust_release.TEACHER}
    more = tuple(
        trust_release.artifact(
            tmp_path / "store", "signals", f"signals{i}", inputs, {"shard": b"%d" % i}, {}
        )
        for i in range(100)
    )
    many = replace(made, artifacts=made.artifacts + more)
    names = [path.name for path in many.attest() if path.name.endswith(".sigstore.json")]
    assert names[0] == "100-train.sigstore.json"
    assert names == sorted(names)
    assert verify(many.release, many.key.public).exit_code == 0


def test_what_cannot_be_signed(made: trust_release.Synthetic) -> None:
    with pytest.raises(UsageError, match="two artifacts of one name"):
        replace(made, artifacts=(*made.artifacts, made.artifacts[0])).attest()
    with pytest.raises(TrustError, match="does not fit its schema"):
        replace(made, predicates=(("certificate", made.artifacts[0], {}),)).attest()
    with pytest.raises(TrustError, match="name: String should match"):
        attest(made.release, artifacts=made.artifacts, predicates=made.predicates,
               signer=made.key, name="two words")  # fmt: skip
    (made.release / "empty").mkdir()
    with pytest.raises(UsageError, match="no empty folders"):
        made.attest()
    (made.release / "empty").rmdir()
    (made.release / "link").symlink_to("README.md")
    with pytest.raises(TrustError, match="symbolic links"):
        made.attest()
    assert not list(made.release.glob("proof/*.sigstore.json"))
