"""Carry the obligations of a verdict out, and recheck them in the finished release."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overproof.core.artifact import Artifact, Input, Resource
from overproof.core.contract import (
    BASE,
    CARD,
    LICENCES,
    MIN_LICENCE_TEXT,
    NOTICE,
    licence_file,
)
from overproof.core.errors import PolicyError, StageError, UsageError
from overproof.core.recipe import Recipe
from overproof.policy import licences, own
from overproof.policy.gate import Decision, Teacher, decide
from overproof.policy.rows import Channel, Obligation

TEXTS = Path(__file__).with_name("data") / "licences"
# Longest repository name on the Hugging Face hub, characters (huggingface_hub, validate_repo_id).
MAX_NAME = 96
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
REMEDY = "run overproof distill again, and edit no card, NOTICE or licence by hand"
# Files that publishers put their licence in, beside the weights.
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt")


@dataclass(frozen=True)
class Unmet:
    """An obligation that a release does not meet, why, and what to do."""

    obligation: Obligation
    reason: str
    remedy: str

    def line(self) -> str:
        """As a detail line of a message."""
        return f"{self.obligation.id}: {self.reason}; {self.remedy}"


@dataclass(frozen=True)
class Plan:
    """What a release must contain to meet its obligations.

    Attributes:
        name: the student's name, prefixed if the terms ask for it.
        asked: the name that was asked for.
        notice_text: content of `proof/NOTICE`.
        card_lines: sentences that the model card must carry.
        files: every file to write, by path in the release, NOTICE among them.
        missing: obligations that cannot be carried out without the user.
    """

    name: str
    asked: str
    notice_text: str
    card_lines: tuple[str, ...]
    files: Mapping[str, str]
    obligations: tuple[Obligation, ...]
    missing: tuple[Unmet, ...] = field(default=())

    @property
    def message(self) -> str | None:
        """One sentence on a rename; None where the name stays."""
        if self.name == self.asked:
            return None
        return (
            f"the student is named {self.name!r}, not {self.asked!r}: "
            "the terms of its teacher ask for it"
        )

    def require(self) -> Plan:
        """The plan itself, if nothing is missing.

        Raises:
            PolicyError: an obligation needs something from the user, such as a licence's text.
        """
        raise_unmet(self.missing, "some obligations of the teacher's terms cannot be carried out")
        return self


def permit(recipe: Recipe, origins: Sequence[tuple[Path | None, Input]]) -> tuple[Decision, Plan]:
    """What must be settled before the teacher's first token: today's verdict, what it demands.

    Args:
        origins: the teacher, and the base if it is another model: folder or file, from the root,
            and the resource; a stage where the run has made the teacher itself, see `own`. Licence
            texts beside the weights are used. A teacher behind an endpoint has no place; on a
            server of one's own the terms of the weights count.

    Raises:
        PolicyError: the terms forbid it, naming the clause; or an obligation cannot be met.
        UsageError: the name is no file name.
    """
    today, endpoint = dt.datetime.now(dt.UTC).date(), recipe.teacher.endpoint
    at_home = endpoint is not None and endpoint.operator == "own"
    channel: Channel = "weights" if at_home else recipe.teacher.channel
    (_, teacher), *_ = origins
    if isinstance(teacher, Artifact):
        decision = own.decide(recipe.teacher.model, teacher, channel, today)
    else:
        given = [
            Teacher(str(place) if one.is_here else one.name, one.sha256, one.kind)
            for place, one in origins
            if isinstance(one, Resource)
        ]
        decision = decide(given, channel=channel, on=today).require()
    beside: dict[str, str] = {}
    for (place, _), ruling in zip(origins, decision.rulings, strict=True):
        if place is not None:
            beside |= texts_beside(place, ruling.obligations)
    plan = carry_out(decision, recipe.student.name, beside)
    return decision, plan.require()


def carry_out(decision: Decision, name: str, texts: Mapping[str, str] | None = None) -> Plan:
    """Plan what the release must be called and contain.

    1. Put the demanded prefix before the name.
    2. Write one NOTICE: a paragraph per teacher and what its terms ask to be told.
    3. Collect the sentences for the model card.
    4. Copy each licence: our own copy, or one that the caller found beside the weights.

    Args:
        decision: a decision that permits the run.
        name: the student's name in the recipe.
        texts: licence texts by identifier, for licences that Overproof does not carry
            (see `texts_beside`).

    Raises:
        PolicyError: the decision permits nothing, or no name can meet the obligations.
        UsageError: the name is no file name.
    """
    duties = decision.require().obligations
    student = rename(name, duties)  # 1.
    notice = _notice(decision, student)  # 2.
    cards = tuple(dict.fromkeys(line for o in duties for line in _card_lines(o)))  # 3.
    files = {NOTICE: notice}
    missing = []
    for duty in (o for o in duties if o.kind == "license_copy"):  # 4.
        for key, text in _licence_texts(duty, texts or {}).items():
            if text is None:
                missing.append(_no_text(duty, key))
            else:
                files[licence_file(key)] = text
    return Plan(student, name, notice, cards, files, duties, tuple(missing))


def rename(name: str, obligations: Iterable[Obligation]) -> str:
    """The name with the prefix that the obligations ask for; unchanged if it has it already.

    Raises:
        PolicyError: two different prefixes are asked for, or the result is too long.
        UsageError: the name is empty or holds characters that a file name cannot.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a model",
            details=["wanted letters, digits, '.', '_' and '-', a letter or digit first"],
        )
    prefixes = sorted({o.value for o in obligations if o.kind == "name_prefix"})
    if len(prefixes) > 1:
        raise PolicyError(
            "no name can meet the terms of all teachers",
            details=[f"each of {', '.join(map(repr, prefixes))} must come first"],
            hint="distil from one of these teachers only",
        )
    if prefixes and not name.startswith(prefixes[0]):
        rest = re.sub(rf"^{re.escape(prefixes[0])}[-_. ]?", "", name, flags=re.IGNORECASE)
        name = f"{prefixes[0]}-{rest}" if rest else prefixes[0]
    if len(name) > MAX_NAME:
        raise PolicyError(
            f"the name {name!r} is too long",
            details=[f"got {len(name)} characters, wanted at most {MAX_NAME}"],
            hint="set a shorter student.name in the recipe; the prefix is put before it",
        )
    return name


def _role(model: Teacher) -> str:
    return "Base" if model.kind == BASE else "Teacher"


def _notice(decision: Decision, name: str) -> str:
    paragraphs = [f"NOTICE of {name}\n\nThis model was made from the models below."]
    for ruling in decision.rulings:
        lines = [line for o in ruling.obligations for line in _notice_lines(o)]
        copies = [licence_file(key) for o in ruling.obligations for key in _licence_keys(o)]
        lines += [f"Licence text: {path}" for path in dict.fromkeys(copies)]
        paragraphs.append(
            "\n".join([f"{_role(ruling.teacher)}: {ruling.display}", *dict.fromkeys(lines)])
        )
    return "\n\n".join(paragraphs) + "\n"


def _notice_lines(obligation: Obligation) -> list[str]:
    if obligation.kind == "notice":
        return [obligation.value]
    return _shared_lines(obligation)


def _card_lines(obligation: Obligation) -> list[str]:
    if obligation.kind == "card_text":
        return [obligation.value]
    return _shared_lines(obligation)


def _shared_lines(obligation: Obligation) -> list[str]:
    """Sentences that both NOTICE and the model card carry, so that every recipient meets them."""
    match obligation.kind:
        case "acceptable_use":
            return [f"Use of this model must keep to the use policy at {obligation.value}"]
        case "user_limit":
            users = f"{int(obligation.value):,}"
            return [
                f"Whoever has more than {users} monthly active users needs a licence of their own "
                "from the teacher's licensor."
            ]
        case "propagate_terms":
            return [
                "This model is a derivative of its teacher and is passed on under the same terms, "
                f"which bind every recipient: {obligation.value}"
            ]
        case _:
            return []


def _licence_keys(obligation: Obligation) -> tuple[str, ...]:
    return licences.parse(obligation.value).keys if obligation.kind == "license_copy" else ()


def own_text(key: str) -> str | None:
    """The licence text that ships with Overproof, if it does."""
    file = TEXTS / f"{key}.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _licence_texts(obligation: Obligation, given: Mapping[str, str]) -> dict[str, str | None]:
    return {key: own_text(key) or given.get(key) for key in _licence_keys(obligation)}


def _no_text(obligation: Obligation, key: str) -> Unmet:
    return Unmet(
        obligation,
        f"Overproof does not carry the text of {key}",
        "put the licence, as the publisher gives it, into LICENSE beside the model's weights",
    )


def texts_beside(teacher: Path, obligations: Iterable[Obligation]) -> dict[str, str]:
    """The licence text beside a teacher's weights, for the one licence that needs it.

    One file cannot be the text of two licences: with two missing, none is filled.

    Raises:
        StageError: the file is there but cannot be read.
    """
    folder = teacher if teacher.is_dir() else teacher.parent
    wanted = {key for o in obligations for key in _licence_keys(o) if own_text(key) is None}
    found = [folder / name for name in LICENCE_FILES if (folder / name).is_file()]
    if len(wanted) != 1 or not found:
        return {}
    try:
        return {wanted.pop(): found[0].read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise StageError(f"cannot read the licence {found[0]}", details=[str(error)]) from error


def recheck(release: Path, name: str, obligations: Sequence[Obligation]) -> list[Unmet]:
    """Which obligations a finished release does not meet. Reads NOTICE, the card and licences.

    Raises:
        StageError: the release is no folder.
    """
    if not release.is_dir():
        raise StageError(f"no release at {release}")
    paths = [release / NOTICE, release / CARD, *(release / LICENCES).glob("*.txt")]
    listing = {
        path.relative_to(release).as_posix(): path.read_text(encoding="utf-8", errors="replace")
        for path in paths
        if path.is_file()
    }
    return unmet(listing, name, obligations)


def unmet(listing: Mapping[str, str], name: str, obligations: Sequence[Obligation]) -> list[Unmet]:
    """The rule of `recheck`: which obligations do these files, path to text, not meet."""
    found = []
    for obligation in obligations:
        reason = _why_unmet(listing, name, obligation)
        if reason:
            found.append(Unmet(obligation, reason, REMEDY))
    return found


def done(obligations: Iterable[Obligation], found: Sequence[Unmet]) -> set[str]:
    """Ids of the obligations that a recheck found met, for `Decision.to_json`."""
    return {o.id for o in obligations} - {entry.obligation.id for entry in found}


def raise_unmet(
    found: Sequence[Unmet], what: str = "the release does not meet its obligations"
) -> None:
    """Turn unmet obligations into a refusal.

    Raises:
        PolicyError: there is at least one.
    """
    if found:
        raise PolicyError(what, details=[entry.line() for entry in found])


def _why_unmet(listing: Mapping[str, str], name: str, obligation: Obligation) -> str | None:
    notice, card = listing.get(NOTICE, ""), listing.get(CARD, "")
    if obligation.kind == "name_prefix":
        if not name.startswith(obligation.value):
            return f"the name {name!r} does not begin with {obligation.value!r}"
        return None if name in card else f"{CARD} does not show the name {name!r}"
    if obligation.kind == "license_copy":
        return next(
            filter(None, (_why_no_copy(listing, k) for k in _licence_keys(obligation))), None
        )
    for path, text, wanted in (
        (NOTICE, notice, _notice_lines(obligation)),
        (CARD, card, _card_lines(obligation)),
    ):
        lacking = [line for line in wanted if _folded(line) not in _folded(text)]
        if lacking:
            return f"{path} lacks “{lacking[0]}”"
    return None


def _why_no_copy(listing: Mapping[str, str], key: str) -> str | None:
    path = licence_file(key)
    text, own = listing.get(path), own_text(key)
    if text is None:
        return f"{path} is not there"
    if own is not None and _folded(own) != _folded(text):
        return f"{path} is not the text of {key}"
    if len(text) < MIN_LICENCE_TEXT:
        return f"{path} is too short to be a licence ({len(text)} characters)"
    return None


def _folded(text: str) -> str:
    return " ".join(text.split())
