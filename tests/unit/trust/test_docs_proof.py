"""The commands in docs/proof.md run, and say what the page says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import trust_release

from overproof.trust.verify import TITLES

PAGE = (Path(__file__).parents[3] / "docs/proof.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shell(folder: Path) -> subprocess.CompletedProcess[str]:
    script = "set -euo pipefail\n" + "\n".join(BLOCKS)
    return subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_commands_accept_a_release_and_reject_a_changed_one(
    sealed: trust_release.Synthetic, tmp_path: Path
) -> None:
    release = trust_release.copy(sealed.release, tmp_path / "release")
    (tmp_path / "demo.pub").write_bytes(sealed.key.public.pem)
    done = shell(tmp_path)
    assert done.returncode == 0, done.stderr
    assert sealed.key.public.hint in done.stdout
    for line in (
        "Verified OK",
        "all files as signed",
        "Signature Verified Successfully",
        "the release statement is in the log",
    ):
        assert line in done.stdout
    (release / "README.md").write_text("changed")
    assert "all files as signed" not in shell(tmp_path).stdout
    statement = release / "proof/release.sigstore.json"
    data = bytearray(statement.read_bytes())
    data[data.index(b'"payload":"') + 200] ^= 1
    statement.write_bytes(data)
    assert shell(tmp_path).returncode != 0


def test_the_page_lists_every_step() -> None:
    steps = re.findall(r"^(\d)\. \*\*", PAGE, re.MULTILINE)
    assert [int(step) for step in steps] == list(TITLES)
