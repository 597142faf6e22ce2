"""Licences of data and weights: SPDX expressions, their class for training, the strictest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import license_expression
import yaml

from overproof.core.contract import MAX_EXPRESSION
from overproof.core.errors import PolicyError, UsageError
from overproof.core.section import Section
from overproof.policy.verdict import Verdict

DATA = Path(__file__).with_name("data") / "licences.yaml"
CACHED_EXPRESSIONS = 4096  # distinct texts; a data set names few licences, a hostile one many


class LicenceClass(StrEnum):
    """What a licence asks of a released model that learned from the material, strictest first."""

    UNKNOWN = "unknown"
    NO_DERIVATIVES = "no-derivatives"
    NON_COMMERCIAL = "non-commercial"
    SHARE_ALIKE = "share-alike"
    ATTRIBUTION = "attribution"
    PERMISSIVE = "permissive"

    @property
    def rank(self) -> int:
        """Place in the order, 0 for the strictest."""
        return list(LicenceClass).index(self)

    @property
    def verdict(self) -> Verdict:
        """What the class means for training a model that is released."""
        return Verdict.UNKNOWN if self is LicenceClass.UNKNOWN else table().classes[self].verdict


class ClassEntry(Section):
    """One class as the data file holds it."""

    verdict: Verdict
    meaning: str
    licences: tuple[str, ...]


class Table(Section):
    """The data file: classes by name, and our own identifiers with what they stand for."""

    classes: dict[LicenceClass, ClassEntry]
    custom: dict[str, str]


@dataclass(frozen=True)
class Licence:
    """A licence expression that parsed.

    Attributes:
        expression: normalised SPDX expression.
        keys: the identifiers in it, sorted.
        kind: class of the whole expression.
    """

    expression: str
    keys: tuple[str, ...]
    kind: LicenceClass


def meet(classes: Iterable[LicenceClass]) -> LicenceClass:
    """The strictest of several classes; `permissive` of none (the identity)."""
    return min(classes, key=lambda kind: kind.rank, default=LicenceClass.PERMISSIVE)


@lru_cache(maxsize=1)
def table() -> Table:
    """The class table that ships with Overproof."""
    return Table.model_validate(yaml.safe_load(DATA.read_text(encoding="utf-8")))


@lru_cache(maxsize=1)
def _licensing() -> Any:
    known = license_expression.get_spdx_licensing().known_symbols.values()
    custom = [license_expression.LicenseSymbol(key) for key in table().custom]
    return license_expression.Licensing([*known, *custom])


def classify(key: str) -> LicenceClass:
    """Class of one SPDX identifier, `WITH` left out; the stricter where two match."""
    name = key.split(" WITH ")[0]
    return meet(
        [
            kind
            for kind, entry in table().classes.items()
            if any(fnmatchcase(name, pattern) for pattern in entry.licences)
        ]
        or [LicenceClass.UNKNOWN]
    )


@lru_cache(maxsize=CACHED_EXPRESSIONS)
def parse(text: str) -> Licence:
    """Read an SPDX licence expression (SPDX 2.3, annex D).

    `AND` asks for both, so the stricter class counts; `OR` leaves the choice, so the more liberal.

    Raises:
        UsageError: no expression, or an identifier that neither SPDX nor our table knows.
    """
    if len(text) > MAX_EXPRESSION:
        raise UsageError(
            f"a licence expression of {len(text):,} characters",
            details=[f"it begins with {text[:60]!r}", f"at most {MAX_EXPRESSION:,} are read"],
        )
    try:
        tree = _licensing().parse(text, validate=True)
    except (license_expression.ExpressionError, license_expression.ExpressionParseError) as error:
        raise _unreadable(text, str(error)) from error
    except (IndexError, RecursionError) as error:  # the parser leaks these
        raise _unreadable(text, "its parentheses do not fit") from error
    if tree is None:
        raise _unreadable(text, "the text is empty")
    keys = tuple(sorted({str(symbol) for symbol in tree.symbols}))
    return Licence(str(tree), keys, _class_of(tree))


def normalise(text: str) -> str:
    """The expression as SPDX writes it: `mit and apache-2.0` gives `MIT AND Apache-2.0`.

    Raises:
        UsageError: see `parse`.
    """
    return parse(text).expression


def demand(names: Iterable[str], data: str) -> None:
    """Stop unless every licence lets a model learn from the material and be released.

    Args:
        names: the licences of a data set's records.
        data: what the data set is called.

    Raises:
        PolicyError: a class denies it, asks for an approval, or is unknown.
    """
    kinds = {name: parse(name).kind for name in names}
    refused = [name for name, kind in kinds.items() if not kind.verdict.permits]
    if refused:
        raise PolicyError(
            f"licences in {data} do not let a released model learn from its records",
            details=[f"{name}: {kinds[name]}, {kinds[name].verdict}" for name in refused],
            hint="take those records out, or have their owner license them otherwise",
        )


def _class_of(tree: Any) -> LicenceClass:
    if isinstance(tree, license_expression.OR):
        return max((_class_of(arm) for arm in tree.args), key=lambda kind: kind.rank)
    if isinstance(tree, license_expression.AND):
        return meet(_class_of(arm) for arm in tree.args)
    return classify(str(tree))


def _unreadable(text: str, reason: str) -> UsageError:
    known = {key.lower(): key for key in _licensing().known_symbols}
    # People write "Apache 2.0" for Apache-2.0; compare without the dashes.
    close = difflib.get_close_matches(text.strip().lower().replace(" ", "-"), known, n=1)
    return UsageError(
        f"{text!r} is not a known licence",
        details=[reason, "wanted an SPDX expression such as Apache-2.0 or CC-BY-4.0"],
        hint=f"did you mean {known[close[0]]!r}?" if close else "see https://spdx.org/licenses",
    )
