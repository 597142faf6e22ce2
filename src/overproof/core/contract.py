"""What the maker of a release and its verifier must agree on, as neither imports the other.

`policy` carries a teacher's terms out, `trust` looks in the finished release whether they are met.
"""

from __future__ import annotations

# The one use that is judged: train a student on the teacher's outputs, logits or weights and
# release it. It is the strictest common use, so a private experiment is judged no laxer.
USE = "train-released-student"
# Kinds of inputs that must be permitted: a teacher; one behind an endpoint, a name at a place with
# no weights to hash; and a model that the student is cut from, where that is another one.
TEACHER, REMOTE, BASE = ORIGINS = ("teacher", "teacher-endpoint", "base")
NOTICE = "proof/NOTICE"
CARD = "README.md"
LICENCES = "proof/licences"  # folder of the licences' texts, each `ID.txt`
# A pointer is not a copy. Characters; the shortest licence in use, 0BSD, has 640.
MIN_LICENCE_TEXT = 500
MAX_EXPRESSION = 1000  # characters of an SPDX licence expression


def licence_file(key: str) -> str:
    """Where the text of a licence lies in a release."""
    return f"{LICENCES}/{key}.txt"
