"""Is an answer right? One file a kind of check; a record says which, and what is right.

A record's field `check` is an object with a `kind`: `exact`, `number`, `regex`, `json-schema`,
`code`, `reasoning-gym`. What it judges is the answer without its reasoning (`<think>…</think>`).

Checks run in processes of their own with a time limit, without the network (`pool.py`): a pattern
or a program may hang, and a program was written by a model.
"""

from __future__ import annotations

from overproof.teacher.checkers.base import Checker, Finding, final, thinks
from overproof.teacher.checkers.kinds import parse

__all__ = ["Checker", "Finding", "final", "parse", "thinks"]
