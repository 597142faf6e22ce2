"""The model card: README.md with the metadata that the Hugging Face hub reads.

The metadata keys are those of https://huggingface.co/docs/hub/model-cards. `base_model_relation` is
left out on purpose: the hub knows adapter, finetune, merge and quantized, and a distillate with
fewer layers is none of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from overproof.core.contract import CARD, NOTICE
from overproof.core.disk import disk_errors, write_atomic
from overproof.release import words
from overproof.release.conclusion import conclude
from overproof.release.facts import Json, ReportFacts, clean
from overproof.release.report import CLAIMS, LEVELS, TEMPLATES, all_limits, arms, metrics, seeds

TAGS = ("distillation", "knowledge-distillation", "overproof", "provenance", "text-generation")
OTHER = "other"  # the hub's word for a licence that it has no identifier for

# SPDX identifiers that the hub knows, in lower case (its list of licences, read 2026-11).
HUB_LICENCES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0
    cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0
    epl-2.0 eupl-1.1 eupl-1.2 gfdl gpl-2.0 gpl-3.0 isc lgpl-2.1 lgpl-3.0 mit mpl-2.0 ms-pl ncsa
    odbl ofl-1.1 osl-3.0 pddl postgresql unlicense wtfpl zlib
    """.split()  # noqa: SIM905 (a list that people can read)
)
# What the hub calls the licences of model families, by the identifiers of policy/data.
FAMILY_LICENCES = (
    (
        re.compile(r"LicenseRef-(?:scancode-)?llama-(3\.1|3\.2|3\.3|2|3|4)\b.*", re.IGNORECASE),
        r"llama\1",
    ),
    (re.compile(r"LicenseRef-gemma\b.*", re.IGNORECASE), "gemma"),
)
# Markdown that a name or a quote must not be read as (CommonMark 0.31, section 2.4).
MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~!&$])")


def write_card(
    facts: ReportFacts,
    folder: Path,
    *,
    licence: str,
    card_lines: Sequence[str] = (),
    language: Sequence[str] = (),
) -> None:
    """Write README.md. Equal facts give equal bytes.

    Args:
        licence: of the student, an SPDX expression, or `other`.
        card_lines: sentences that the teacher's terms demand, which appear word for word.
        language: ISO 639-1 codes; none are left out of the metadata.

    Raises:
        StageError: the folder cannot be written, or the disk is full.
    """
    text = render(facts, licence=licence, card_lines=card_lines, language=language)
    with disk_errors(folder):
        write_atomic(folder / CARD, text.encode())


def render(
    facts: ReportFacts,
    *,
    licence: str,
    card_lines: Sequence[str] = (),
    language: Sequence[str] = (),
) -> str:
    """The content of README.md: metadata, then the sections."""
    matter = yaml.safe_dump(
        metadata(facts, licence, language), sort_keys=False, allow_unicode=True, width=1000
    )
    body: str = (
        _environment()
        .get_template("card.md.j2")
        .render(
            facts=facts,
            licence=licence,
            card_lines=[clean(line) for line in card_lines],
            arms=arms(facts),
            metrics=metrics(facts),
            seeds=seeds(facts),
            conclusion=conclude(facts),
            claims=CLAIMS,
            levels=LEVELS,
            limits=all_limits(facts),
        )
    )
    return f"---\n{matter}---\n\n{body.strip()}\n"


def metadata(facts: ReportFacts, licence: str, language: Sequence[str] = ()) -> Json:
    """The front matter. `datasets` and `base_model` name things of the hub only."""
    found: Json = {
        **licence_fields(licence),
        **({"language": list(language)} if language else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": sorted({*TAGS, *_formats(facts)}),
    }
    # The hub's word covers both: what a model was distilled from, and whose weights it has.
    models = [facts.teacher_model, facts.base_model]
    hub = [one.hub for one in models if one is not None and one.hub]
    if hub:
        found["base_model"] = hub
    sets = [facts.dataset, facts.heldout]
    hubs = [one.hub for one in sets if one is not None and one.hub]
    if hubs:
        found["datasets"] = list(dict.fromkeys(hubs))
    return found


def licence_fields(licence: str) -> Json:
    """The licence as the hub wants it: its own identifier, or `other` with a name and a link."""
    small = licence.strip().lower()
    if small in HUB_LICENCES:
        return {"license": small}
    for pattern, name in FAMILY_LICENCES:
        if pattern.fullmatch(licence.strip()):
            return {"license": pattern.sub(name, licence.strip())}
    name = "see-notice" if small == OTHER else _slug(licence)
    return {"license": OTHER, "license_name": name, "license_link": NOTICE}


def _slug(licence: str) -> str:
    """The hub takes lower case letters, digits, dots and hyphens in a licence's name."""
    return re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-") or OTHER


def _formats(facts: ReportFacts) -> list[str]:
    return sorted({receipt.target.partition("-")[0] for receipt in facts.receipts})


def escape(text: Any) -> str:
    """A text from data as one line of Markdown that shows it as it is."""
    return MARKUP.sub(r"\\\1", " ".join(clean(str(text)).split()))


def _environment() -> jinja2.Environment:
    # No HTML escaping: the card is Markdown, and what comes from data goes through `escape`.
    found = jinja2.Environment(  # noqa: S701
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("given", "measured", "percent", "count", "size", "parameters"):
        found.filters[name] = getattr(words, name)
    found.filters["md"] = escape
    found.globals.update(times=words.times, part=words.part)
    return found
