"""Write docs/cli.md, the help of every command as the command prints it: make docs"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from overproof import cli

PAGE = Path(__file__).parent / "cli.md"
COMMANDS = (
    (),
    ("distill",),
    ("certify",),
    ("verify",),
    ("terms",),
    ("ask",),
    ("plan",),
    ("keys",),
    ("keys", "new"),
    ("keys", "show"),
    ("doctor",),
)
HEAD = """\
# The command line

Written by `make docs` from the commands themselves; a test compares.

Data goes to stdout, logs and progress to stderr. With `--json` stdout holds one JSON value: \
the result, or `{"error": {"message", "details", "hint"}, "exit_code"}`. SIGTERM ends a command as \
Ctrl-C does; finished work is kept.

| exit code | |
| --- | --- |
| 0 | done |
| 1 | failed: the disk is full, a package is missing, a file is damaged |
| 2 | wrong usage: an option, a path where nothing is, a recipe |
| 3 | checked and rejected: a proof that does not hold, terms that forbid it |
| 130 | stopped by Ctrl-C; finished work is kept |

| variable | |
| --- | --- |
| `OVERPROOF_CONFIG_DIR` | folder of the keys; by default `overproof` in `$XDG_CONFIG_HOME` |
| `OVERPROOF_TRACEBACK=1` | an unexpected exception shows where it happened |
"""


def page() -> str:
    """The whole page."""
    blocks = [HEAD]
    for command in COMMANDS:
        title = " ".join(("overproof", *command))
        blocks.append(f"## {title}\n\n```\n{help_of(command).rstrip()}\n```\n")
    return "\n".join(blocks)


def help_of(command: tuple[str, ...]) -> str:
    """What `--help` prints at the width of the page, whatever the terminal's is."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(cli.HELP_WIDTH)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            cli.dispatch([*command, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return printed.getvalue()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
