"""A stage to be killed: python stage.py STORE STEPS [wait]

It writes one durable part a step and skips the parts that it finds. With `wait` it stops after
half of them, says so with the file `waiting`, and sleeps until somebody kills it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from overproof.core.artifact import Artifact, Json, Work, build
from overproof.core.disk import exclusive, write_atomic
from overproof.core.errors import OverproofError

PART_BYTES = 50_000
FOREVER = 600  # seconds; the test that waits kills the process long before


def run(store: Path, steps: int, wait: bool = False) -> Artifact:
    def make(work: Work) -> Json:
        log = work.scratch("log")
        for step in range(steps):
            if wait and step == steps // 2:
                (work.folder / "half").write_bytes(b"cut in the midd")  # never made durable
                (store / "waiting").touch()
                time.sleep(FOREVER)
            part = work.folder / f"part-{step}"
            if not part.is_file():
                write_atomic(part, bytes([step]) * PART_BYTES)
                with log.open("a") as stream:
                    stream.write(f"{step}\n")
        (work.folder / "half").unlink(missing_ok=True)
        work.measured["made"] = log.read_text().split() if log.is_file() else []
        return {"steps": steps}

    with exclusive(store):
        return build(store, "parts", inputs={}, config={"steps": steps}, make=make)


if __name__ == "__main__":
    try:
        print(run(Path(sys.argv[1]), int(sys.argv[2]), "wait" in sys.argv).sha256)
    except OverproofError as error:
        print(error.render(), file=sys.stderr)
        sys.exit(error.exit_code)
