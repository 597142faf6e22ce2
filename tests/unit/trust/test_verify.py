from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trust_release

from overproof.core.errors import TrustError, UsageError
from overproof.trust import bundle, proofs
from overproof.trust.bundle import Bundle
from overproof.trust.verify import Config, render, run, verify


@pytest.fixture
def signer(sealed: trust_release.Synthetic, tmp_path: Path) -> Path:
    path = tmp_path / "signer.pub"
    path.write_bytes(sealed.key.public.pem)
    return path


def test_accepted(release: Path, signer: Path) -> None:
    verdict = run(Config(release, signer))
    assert (verdict.outcome, verdict.exit_code) == ("accepted", 0)
    assert [(step.number, step.count) for step in verdict.steps] == [
        (1, 10), (2, 10), (3, 10), (4, 8), (5, 9), (6, 2),
    ]  # fmt: skip
    text = render(verdict)
    assert text.count("  ok  ") == 6
    assert f"accepted: {trust_release.NAME}" in text
    levels = {claim.claim: claim.level for claim in verdict.claims}
    assert levels["no file changed"] == "proved"
    assert levels["teacher tiny-llama"] == "attested"
    assert levels["the training steps replay"] == "unknown"
    again = json.loads(json.dumps(verdict.to_json()))
    assert again["format"] == "overproof-verdict/1"
    assert again["claims"][0]["level"] == "proved"


def test_without_a_signer(release: Path) -> None:
    verdict = run(Config(release))
    assert (verdict.outcome, verdict.exit_code) == ("consistent", 3)
    assert "consistent, signer unknown" in render(verdict)
    assert "attested" not in {claim.level for claim in verdict.claims}


def test_another_signer(release: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pub"
    other.write_bytes(trust_release.signing_key(b"other").public.pem)
    with pytest.raises(TrustError, match="signed by another key") as caught:
        run(Config(release, other))
    assert caught.value.step == 2
    assert caught.value.exit_code == 3


def test_rejected_as_json(release: Path, signer: Path) -> None:
    (release / "README.md").write_text("changed")
    with pytest.raises(TrustError) as caught:
        run(Config(release, signer))
    assert caught.value.step == 4
    verdict = run(Config(release, signer, json=True))
    assert verdict.to_json()["failure"]["step"] == 4
    assert "rejected at step 4" in render(verdict)
    assert "README.md" in render(verdict)


def test_the_steps_that_passed_are_told(
    release: Path, signer: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (release / "README.md").write_text("changed")
    with pytest.raises(TrustError):
        run(Config(release, signer))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("  ok  ") == 3


def test_wrong_paths(release: Path, signer: Path, tmp_path: Path) -> None:
    for config in (
        Config(tmp_path / "none", signer),
        Config(release / "README.md", signer),
        Config(release, tmp_path / "none.pub"),
        Config(release, release / "README.md"),
    ):
        with pytest.raises(UsageError):
            run(config)


def test_a_folder_that_is_no_release(tmp_path: Path, signer: Path) -> None:
    with pytest.raises(TrustError, match="no release statement") as caught:
        run(Config(tmp_path, signer))
    assert caught.value.step == 1
    assert "proof/" in str(caught.value.hint)


def test_empty_folders_links_and_hidden_files(release: Path, signer: Path) -> None:
    config = Config(release, signer)
    (release / "model/empty").mkdir()
    with pytest.raises(TrustError, match="model/empty") as caught:
        run(config)
    assert caught.value.step == 4
    (release / "model/empty").rmdir()
    (release / ".DS_Store").write_text("")
    with pytest.raises(TrustError, match=r"\.DS_Store") as caught:
        run(config)
    assert caught.value.step == 4
    (release / ".DS_Store").unlink()
    (release / "more").symlink_to("README.md")
    with pytest.raises(TrustError, match="more") as caught:
        run(config)
    assert caught.value.step == 1


@pytest.mark.parametrize("number", [10, 12, 17])
def test_a_statement_taken_away_with_its_log_proof(
    release: Path, signer: Path, number: int
) -> None:
    gone = list(release.glob(f"proof/{number}-*"))
    assert len(gone) == 2
    for file in gone:
        file.unlink()
    with pytest.raises(TrustError) as caught:
        run(Config(release, signer))
    assert any(f"proof/{number}-" in line for line in [caught.value.what, *caught.value.details])


def test_a_number_far_off_names_nothing_and_costs_nothing(release: Path, signer: Path) -> None:
    for file in [*release.glob("proof/10-*"), *release.glob("proof/12-*")]:
        file.unlink()
    for file in release.glob("proof/17-*"):
        file.rename(file.with_name(file.name.replace("17-", "99999999999-")))
    with pytest.raises(TrustError) as caught:
        run(Config(release, signer))
    assert len(caught.value.details) < 30


def test_another_signature_of_the_same_key(release: Path, signer: Path) -> None:
    """ECDSA has a second valid signature for each; only the log notices."""
    from cryptography.hazmat.primitives.asymmetric.utils import (
        decode_dss_signature,
        encode_dss_signature,
    )

    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    file = release / "proof/12-student.sigstore.json"
    old = Bundle.parse(file.read_bytes())
    r, s = decode_dss_signature(old.signature)
    file.write_bytes(replace(old, signature=encode_dss_signature(r, order - s)).encode())
    with pytest.raises(TrustError, match="12-student") as caught:
        run(Config(release, signer))
    assert caught.value.step == 3


def test_a_release_statement_of_another_type(release: Path, signer: Path) -> None:
    other = (release / "proof/12-student.sigstore.json").read_bytes()
    (release / proofs.RELEASE).write_bytes(other)
    with pytest.raises(TrustError) as caught:
        run(Config(release, signer))
    assert caught.value.step == 1


def test_statements_too_large(release: Path, signer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "MAX_BUNDLE_BYTES", 100)
    with pytest.raises(TrustError, match="more than 100 bytes") as caught:
        run(Config(release, signer))
    assert caught.value.step == 1
    assert bundle.MAX_BUNDLE_BYTES > 100
    monkeypatch.setattr(proofs, "MAX_STATEMENTS", 3)
    with pytest.raises(TrustError, match="more than 3 statements"):
        run(Config(release, signer))


def test_untrusted_names_do_not_reach_the_terminal(release: Path, signer: Path) -> None:
    (release / "proof/release.sigstore.json").write_bytes(b'{"\\u001b[2J":1}')
    with pytest.raises(TrustError) as caught:
        run(Config(release, signer))
    assert "\x1b" not in caught.value.render()


def test_verify_needs_no_torch_and_no_network() -> None:
    code = (
        "import sys, overproof.trust.verify, overproof.trust.attest, overproof.trust.keys\n"
        "bad = {'torch', 'numpy', 'pyarrow', 'transformers', 'httpx', 'requests', 'urllib3'}\n"
        "sys.exit(sorted(bad & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_verify_as_a_function_reports_each_step(release: Path) -> None:
    seen: list[int] = []
    verify(release, trust_release.signing_key().public, lambda step: seen.append(step.number))
    assert seen == [1, 2, 3, 4, 5, 6]
