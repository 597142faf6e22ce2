"""The gate's sentences, shared by the verb, the refusals and the documentation."""

from __future__ import annotations

from overproof.policy import match
from overproof.policy.lookup import Finding, known_families, lookup, nearest_family
from overproof.policy.rows import CHANNELS, Obligation, Row
from overproof.policy.verdict import Verdict

MEANING = {
    Verdict.ALLOW: "Yes. You may train a model on this teacher and release it, with the usual "
    "attribution.",
    Verdict.ALLOW_WITH: "Yes, if every obligation below is met. Overproof carries them out and "
    "rechecks them.",
    Verdict.NEEDS_APPROVAL: "Not without written approval of the provider.",
    Verdict.DENY: "No. You may not train a model on this teacher and release it.",
    Verdict.UNKNOWN: "No. The terms of this teacher are not in the table, and unknown counts as "
    "deny.",
}
DUTIES = {
    "name_prefix": "begin the student's name with “{}”",
    "notice": "write into NOTICE: “{}”",
    "license_copy": "ship the text of {}",
    "card_text": "print in the model card: “{}”",
    "acceptable_use": "keep to the use policy and pass it on: {}",
    "user_limit": "ask for a licence of your own above {} monthly active users",
    "propagate_terms": "put the student under the same terms: {}",
}
NOT_ADVICE = (
    "A record of what was read, not legal advice. "
    "Terms change: read the source before you rely on it."
)


def title(row: Row) -> str:
    """The document and its date, with what the date rests on."""
    basis = {
        "stated": f"effective {row.effective}",
        "month": f"of {row.effective:%Y-%m}",
        "release": f"in force since the release on {row.effective}",
        "seen": f"own date not known, seen {row.effective:%Y-%m}",
    }[row.date_basis]
    return f"{row.document}, {basis}"


def duty(obligation: Obligation) -> str:
    """One obligation as an instruction, with its clause."""
    value = obligation.value
    if obligation.kind == "user_limit":
        value = f"{int(value):,}"
    where = f" (clause {obligation.clause})" if obligation.clause else ""
    return f"{DUTIES[obligation.kind].format(value)}{where}"


def what_allows(found: Finding) -> list[str]:
    """What would turn a refusal into a permission, the surest first."""
    weights = ", the SHA-256 of its weights" if match.is_path(found.model) else ""
    ways = [
        f"a signed approval that names teacher {match.stated(found.model)!r}{weights} "
        f"and terms digest {found.terms_digest} (docs/terms.md; the gate takes one from a "
        "program, no verb yet)"
    ]
    if not found.deciding.rows:
        ways.append("a dated row for it, added by someone who read its terms (docs/terms.md)")
    ways.append("another teacher (`overproof terms MODEL` tells before anything is spent)")
    return ways


def about_the_unknown(found: Finding) -> list[str]:
    """What the table does know, for the reader of an unknown: channels, a near name, families."""
    lines = []
    for channel in CHANNELS:
        other = lookup(found.model, channel, found.on)
        if channel != found.channel and other.rows:
            lines.append(f"known for channel {channel}: {other.rows[0].family}, {other.verdict}")
    near = nearest_family(found.model, found.channel, found.on)
    if near:
        lines.append(f"nearest known family: {near}")
    families = ", ".join(known_families(found.channel, found.on))
    lines.append(f"families known for channel {found.channel}: {families or 'none on that day'}")
    return lines
