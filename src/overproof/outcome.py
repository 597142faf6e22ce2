"""What a command leaves behind: its result as text or JSON, its errors in words, its exit code."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from typer.exceptions import TyperException

from overproof.core.console import note
from overproof.core.digest import pretty
from overproof.core.errors import OverproofError, StageError, UsageError, install

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
STOPPED = "stopped; finished work is kept, run the same command again"
TRACEBACK = "OVERPROOF_TRACEBACK"  # set to 1: an unexpected exception shows where it came from


def guarded(command: Callable[[], int | None], *, as_json: bool = False) -> int:
    """Run a command; whatever it raises becomes an error in words and an exit code.

    Args:
        as_json: stdout gets an error as JSON, where it would have had the result.
    """
    try:
        code = command()
    except OverproofError as error:
        return _fail(error, as_json)
    except TyperException as error:
        return _fail(_usage(error), as_json)
    except Exception as error:
        missing = _missing_extra(error)
        return _fail(missing or _unexpected(error), as_json)
    if code == INTERRUPTED:
        note(STOPPED)
    return int(code or 0)


def _fail(error: OverproofError, as_json: bool) -> int:
    note(error.render())
    if as_json:
        with suppress(OSError):  # a closed pipe, a full disk: the exit code still tells
            print_text(pretty(error.to_json()))
    return error.exit_code


def _usage(error: TyperException) -> UsageError:
    """A wrong flag or a missing argument, as typer found it, in the form of every other error."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "overproof"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return UsageError(message.rstrip("."), hint=f"{path} --help")


def _missing_extra(error: Exception) -> StageError | None:
    """The error in words if a package of an extra is not installed; None if it is a fault."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    root = name.partition(".")[0]
    if root in {"", "overproof"} or root in sys.stdlib_module_names:
        return None
    return StageError(
        "this verb needs the extra `distill`",
        details=[f"no module named {name!r}"],
        hint=install("distill"),
    )


def _unexpected(error: Exception) -> StageError:
    if os.environ.get(TRACEBACK) == "1":
        raise error
    first = (str(error).splitlines() or [""])[0]
    return StageError(
        f"unexpected {type(error).__name__}: {first}",
        hint=f"this is a fault of Overproof; {TRACEBACK}=1 shows where it happened",
    )


@contextmanager
def options() -> Iterator[None]:
    """A value that a verb's configuration refuses is named as the option that it came from."""
    try:
        yield
    except ValidationError as error:
        rows = [
            f"--{'-'.join(map(str, row['loc'])).replace('_', '-')}: got {row['input']!r}; "
            f"{row['msg'][0].lower()}{row['msg'][1:]}"
            for row in error.errors()
        ]
        raise UsageError("an option has a value that is not allowed", details=rows) from error


def print_text(text: str) -> None:
    """Write a text to stdout, one line end behind it."""
    # Not through rich: data goes out as it is, whatever markup or emoji code it seems to hold.
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def finish(verb: Any, result: Any, as_json: bool) -> int:
    """Print a verb's result and return its exit code."""
    if as_json:
        print_text(pretty(_machine(result)))
    elif text := verb.render(result):
        print_text(text)
    return int(getattr(result, "exit_code", 0))


def _machine(result: Any) -> Any:
    if hasattr(result, "to_json"):
        return result.to_json()
    return _plain(dataclasses.asdict(result))


def _plain(value: Any) -> Any:
    """JSON types only: paths become texts."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
