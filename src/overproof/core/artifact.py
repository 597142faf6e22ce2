"""An artifact: a folder that is either complete and described, or not there.

A stage works in a folder beside the final name. Killed, it leaves that folder and finds it
again; finished, `artifact.json` is written last and the folder is moved into place. The digest
of an artifact is the SHA-256 of its canonical manifest without `times`, so that equal inputs
give equal digests however long they took.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from typing import Any

from overproof import __version__
from overproof.core.code import source_sha256
from overproof.core.console import note
from overproof.core.digest import pretty, sha256_file, sha256_json
from overproof.core.disk import disk_error, replace_folder, temporary, write_atomic
from overproof.core.errors import StageError, TrustError

MANIFEST = "artifact.json"
FORMAT = "overproof-artifact/1"
FILE = "file:"  # the URI of a resource that only the maker's machine has
SCRATCH = ".scratch"  # folder in a stage's work folder, for what helps to resume
Json = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """An input that no stage made: a data file, a teacher's weights, the code.

    Attributes:
        kind: `source`, `teacher`, `base` or `code`; where the walk back through a proof may end.
        name: what a reader calls it.
        uri: where it came from.
        sha256: digest of its bytes, 64 hex digits.
    """

    kind: str
    name: str
    uri: str
    sha256: str

    @classmethod
    def here(cls, kind: str, name: str, sha256: str) -> Resource:
        """A file or folder of this machine, named without its folders."""
        return cls(kind, name, f"{FILE}{name}", sha256)

    @property
    def is_here(self) -> bool:
        """Whether it was given as a file or folder of the maker's machine."""
        return self.uri.startswith(FILE)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest as read."""

    path: Path
    manifest: Json

    @property
    def kind(self) -> str:
        """What it is: `dataset`, `signals`, `student`, ..."""
        return str(self.manifest["kind"])

    @property
    def facts(self) -> Json:
        """What the stage found out, small and deterministic: counts, losses, verdicts."""
        return dict(self.manifest["facts"])

    @property
    def sha256(self) -> str:
        """The manifest digest, which binds every file, input and setting."""
        return manifest_digest(self.manifest)

    def file(self, name: str) -> Path:
        """Path of one of its files.

        Raises:
            StageError: the manifest lists no such file.
        """
        if name not in {entry["name"] for entry in self.manifest["files"]}:
            raise StageError(f"artifact {self.path} has no file {name!r}")
        return self.path / name


Input = Artifact | Resource


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical manifest, `times` left out."""
    return sha256_json({key: value for key, value in manifest.items() if key != "times"})


def list_files(folder: Path) -> list[Path]:
    """Regular files under `folder`, as paths relative to it, sorted by their POSIX name.

    Raises:
        TrustError: the folder holds a symbolic link or a device, which no manifest can bind.
    """
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise TrustError(
                "only regular files can be part of an artifact",
                details=[f"{path}: a link or device"],
            )
        if path.is_file():
            found.append(path.relative_to(folder))
    return sorted(found, key=lambda path: path.as_posix())


def describe(folder: Path) -> list[Json]:
    """Name, SHA-256 and size of every file under `folder`, manifest and scratch left out."""
    return [
        {
            "name": name.as_posix(),
            "sha256": sha256_file(folder / name),
            "bytes": (folder / name).stat().st_size,
        }
        for name in list_files(folder)
        if name.as_posix() != MANIFEST and name.parts[0] != SCRATCH
    ]


def load(path: Path) -> Artifact:
    """Read a finished artifact and compare each file's size with its manifest.

    Digests are compared by `check`; sizes catch a cut file at no cost.

    Raises:
        StageError: no artifact there, another format, or a file is missing or of another size.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise StageError(f"no artifact at {path}", hint=f"a finished one holds {MANIFEST}")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as error:
        raise StageError(f"{file} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise StageError(
            f"{file} is of another version", details=[f"got {got!r}, wanted {FORMAT!r}"]
        )
    _demand_fields(file, manifest)
    for entry in manifest["files"]:
        target = path / entry["name"]
        if not target.is_file() or target.stat().st_size != entry["bytes"]:
            raise StageError(
                f"artifact {path} is damaged", details=[f"{entry['name']}: missing or cut"]
            )
    return Artifact(path, manifest)


def _demand_fields(file: Path, manifest: Json) -> None:
    """What `Artifact` reads must be there, whoever wrote the file."""
    entry = {"name": str, "sha256": str, "bytes": int}
    rows = manifest.get("files")
    whole = (
        isinstance(manifest.get("kind"), str)
        and isinstance(manifest.get("facts"), dict)
        and isinstance(rows, list)
        and all(
            isinstance(row, dict) and all(isinstance(row.get(k), t) for k, t in entry.items())
            for row in rows
        )
    )
    if not whole:
        raise StageError(
            f"{file} is damaged",
            details=["wanted `kind`, `facts`, and `files` with name, sha256 and bytes"],
            hint="remove its folder and run the same command again",
        )


def check(artifact: Artifact) -> None:
    """Compare every file with its manifest, by name and digest.

    Raises:
        TrustError: a file differs, is missing, or is not in the manifest.
    """
    wanted = {entry["name"]: entry["sha256"] for entry in artifact.manifest["files"]}
    got = {entry["name"]: entry["sha256"] for entry in describe(artifact.path)}
    wrong = [
        f"{name}: got {got.get(name, 'no file')}, wanted {wanted.get(name, 'no file')}"
        for name in sorted(wanted.keys() | got.keys())
        if wanted.get(name) != got.get(name)
    ]
    if wrong:
        raise TrustError(
            f"{len(wrong)} files of {artifact.path} differ from the manifest", details=wrong
        )


def _input_row(role: str, given: Input) -> Json:
    if isinstance(given, Artifact):
        return {"role": role, "kind": given.kind, "name": given.path.name, "sha256": given.sha256}
    return {
        "role": role,
        "kind": given.kind,
        "name": given.name,
        "uri": given.uri,
        "sha256": given.sha256,
    }


@dataclass(frozen=True)
class Work:
    """What a stage's `make` gets: a folder that outlives a kill, and a place for measured times."""

    folder: Path
    measured: Json

    def scratch(self, name: str) -> Path:
        """A file or folder that helps to resume and is removed once the manifest is written."""
        path = self.folder / SCRATCH
        path.mkdir(exist_ok=True)
        return path / name


def build(
    store: Path,
    kind: str,
    *,
    inputs: Mapping[str, Input],
    config: Json,
    make: Callable[[Work], Json],
    name: str | None = None,
    layer: str = "core",
) -> Artifact:
    """Return the artifact of these inputs and this configuration, making it unless it exists.

    1. The key is the digest of kind, inputs, configuration and code.
    2. An artifact of that key in its place is returned, if its files are what it says.
    3. `make` works in `.NAME.KEY.partial`, which a killed run leaves behind for the next one.
       Then its files are described, and `artifact.json` is written.
    4. What helped to resume is removed, and the folder is moved into place.

    Args:
        store: the folder that holds the run's artifacts.
        kind: what the artifact is, such as `dataset`; also its folder's name by default.
        make: fills the work folder, returns the facts (JSON, deterministic).
        layer: the package that `make` is part of: its sources and those below are its code.

    Raises:
        StageError: the disk is full or the folder cannot be written.
    """
    name = name or kind
    # 1.
    identity = _identity(kind, inputs, config, layer)
    key = sha256_json(identity)
    final = store / name
    # 2.
    found = _existing(final, identity)
    if found is not None:
        note(f"{name}: kept from an earlier run")
        return found
    # 3.
    if final.exists():
        note(f"{name}: made anew; it then replaces the one in {final}")
    partial = store / f".{name}.{key[:16]}.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        if not (partial / MANIFEST).is_file():
            _make(partial, identity, make)
        # 4.
        shutil.rmtree(partial / SCRATCH, ignore_errors=True)
        _move_into_place(partial, final)
    except OSError as error:
        raise disk_error(error, store) from error
    made = load(final)
    note(f"{name}: done in {made.manifest['times']['seconds']:,.0f} s, {_headline(made.facts)}")
    return made


def _identity(kind: str, inputs: Mapping[str, Input], config: Json, layer: str) -> Json:
    return {
        "format": FORMAT,
        "kind": kind,
        "inputs": [_input_row(role, given) for role, given in sorted(inputs.items())],
        "config": config,
        "config_sha256": sha256_json(config),
        "code": {"name": "overproof", "version": __version__, "sha256": source_sha256(layer)},
    }


def _make(partial: Path, identity: Json, make: Callable[[Work], Json]) -> None:
    work = Work(partial, {})
    clock = _Clock.start(work)
    facts = make(work)
    temporary(partial / MANIFEST).unlink(missing_ok=True)
    manifest = {
        **identity,
        "facts": facts,
        "files": describe(partial),
        "times": clock.stop() | {"measured": work.measured},
    }
    write_atomic(partial / MANIFEST, pretty(manifest).encode())


@dataclass(frozen=True)
class _Clock:
    """The time that a stage takes, over all runs that worked on it; kept where a kill leaves it.

    Attributes:
        first: when the first run began; `began`: when this one did. Seconds since 1970.
        spent: seconds of the runs before. A killed one counts up to its last file.
    """

    first: float
    began: float
    spent: float

    @classmethod
    def start(cls, work: Work) -> _Clock:
        file = work.scratch("clock.json")
        now = time.time()
        clock = cls(now, now, 0.0)
        if file.is_file():
            before = cls(**json.loads(file.read_bytes()))
            files = (work.folder / name for name in list_files(work.folder))
            last = max(path.stat().st_mtime for path in files)
            spent = before.spent + max(0.0, last - before.began)
            clock = cls(before.first, now, spent)
        write_atomic(file, json.dumps(vars(clock)).encode())
        return clock

    def stop(self) -> Json:
        now = time.time()
        return {
            "started": _utc(self.first),
            "finished": _utc(now),
            "seconds": round(self.spent + now - self.began, 3),
        }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _headline(facts: Json) -> str:
    """The facts that fit a line: single numbers and words."""
    short = {key: value for key, value in facts.items() if isinstance(value, int | float | str)}
    shown = [f"{key.replace('_', ' ')} {_short(value)}" for key, value in short.items()]
    return ", ".join(shown[:4]) or "no single figures"


def _short(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int | float) else value


def _existing(final: Path, identity: Json) -> Artifact | None:
    try:
        found = load(final)
    except StageError:
        return None
    if not all(found.manifest.get(k) == v for k, v in identity.items()):
        return None
    try:
        check(found)
    except TrustError as error:
        note(f"{final.name}: changed since it was made, made again: {error.details[0]}")
        return None
    return found


def _move_into_place(partial: Path, final: Path) -> None:
    replace_folder(partial, final)
    for stale in final.parent.glob(f".{escape(final.name)}.*.partial"):
        shutil.rmtree(stale, ignore_errors=True)
