"""What the runs of tiny models in these tests have in common."""

from __future__ import annotations

from pathlib import Path

from overproof import pipeline


def config(folder: Path, *more: str) -> pipeline.Config:
    """A run of `recipe.yaml` into `out`, signed by `signer.key`."""
    return pipeline.Config(
        recipe=str(folder / "recipe.yaml"),
        out=folder / "out",
        key=folder / "signer.key",
        overrides=more,
    )
