"""Write the JSON Schemas of this folder from the models: python docs/predicates/generate.py"""

from __future__ import annotations

from pathlib import Path

from overproof.core.digest import pretty
from overproof.trust.predicates import OWN, schema

HERE = Path(__file__).parent

if __name__ == "__main__":
    for short in OWN:
        (HERE / f"{short}.schema.json").write_text(pretty(schema(short)), encoding="utf-8")
