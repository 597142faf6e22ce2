"""Where the results of benchmarks are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from overproof.core.host import machine


def keep(benchmark: str, numbers: dict[str, Any], packages: Sequence[str] = ()) -> dict[str, Any]:
    """Write a result with its benchmark's name and this machine; returns it whole.

    Args:
        packages: whose versions stand with the machine's, beside those that always do.
    """
    versions = {package: version(package) for package in packages}
    result = {"benchmark": benchmark, **numbers, "machine": machine() | versions}
    file = Path(__file__).parent / f"results/{benchmark}.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
