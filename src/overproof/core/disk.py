"""Files that are whole or not there, folders that one run holds, and a disk's errors in words."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overproof.core.errors import StageError

TEMPORARY = ".tmp"  # ends the name of a file that is being written


def disk_error(error: OSError, where: Path) -> StageError:
    """An `OSError` in words: what to do about a full disk or a folder that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(
            f"the disk is full under {where}",
            hint="free some space and run the same command again: finished work is kept",
        )
    return StageError(
        f"cannot write under {where}: {error.strerror or error}", details=[str(error)]
    )


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Tell an `OSError` of the block in words.

    Raises:
        StageError: see `disk_error`.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(error, where) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside the final name, flush to disk, move into place: all of it or nothing."""
    beside = temporary(path)
    with beside.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes under a second name, at no cost where the file system has hard links."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def temporary(path: Path) -> Path:
    """The name under which a file is written before it is moved into place."""
    return path.with_name(f".{path.name}{TEMPORARY}")


def replace_folder(made: Path, place: Path) -> None:
    """Move a finished folder into its place; the one that is there goes only then."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    made.rename(place)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for one run; the lock goes with the process, however it ends.

    Raises:
        StageError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a+")
    except OSError as error:
        raise disk_error(error, folder) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise StageError(
                f"another run is working in {folder}",
                details=[f"process {stream.read().strip() or 'unknown'}"],
                hint="wait for it, or give this run another folder with --out",
            ) from error
        except OSError as error:  # a file system without locks
            raise disk_error(error, folder) from error
        with disk_errors(folder):
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
        yield
