"""A process of its own for what is compared with, in the environment that suits it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHOWN = 15  # lines of a failed child's output
OURS = ("OMP_WAIT_POLICY", "TQDM_DISABLE")  # set by `device.prepare` for our own processes
# What `device.prepare` does for us, for a process that does not call it.
TUNED = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
}


class ChildError(Exception):
    """The process ended early; the message is the end of what it said."""


def run(
    script: str,
    job: dict[str, Any],
    *,
    environment: dict[str, str] | None = None,
    processes: int = 1,
) -> Any:
    """Run a script beside this file; what it answers.

    Args:
        job: what it is told, as JSON in a file whose path is its one argument; `answer` in it is
            where it writes what it found, as JSON.
        environment: more variables.
        processes: that run the script together, as torch.distributed starts them.

    Raises:
        ChildError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        told, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        told.write_text(json.dumps({**job, "answer": str(answer)}), encoding="utf-8")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*(launcher if processes > 1 else []), str(Path(__file__).with_name(script))]
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        done = subprocess.run(
            [sys.executable, *command, str(told)],
            env=inherited | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode or not answer.is_file():
            raise ChildError("\n".join(done.stdout.splitlines()[-SHOWN:]))
        return json.loads(answer.read_bytes())
