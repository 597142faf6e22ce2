"""Step 6: terms for every teacher, a certificate for every dataset, a receipt for every build."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from license_expression import ExpressionError, get_spdx_licensing

from overproof.core.contract import (
    CARD,
    MAX_EXPRESSION,
    MIN_LICENCE_TEXT,
    NOTICE,
    USE,
    licence_file,
)
from overproof.core.digest import pretty, sha256_bytes
from overproof.core.errors import TrustError
from overproof.trust.chain import EXPORT, EXPORT_KIND, SOURCE, Chain, made, released
from overproof.trust.folder import Folder
from overproof.trust.predicates import (
    Certificate,
    DatasetHead,
    Obligation,
    ParityReceipt,
    RemoteTeacher,
    TermsVerdict,
)
from overproof.trust.proofs import Proofs, Signed
from overproof.trust.remote import check_remotes
from overproof.trust.strict import SHA256_HEX, shown

PERMITS = ("allow", "allow_with")
MAX_TEXT_BYTES = 4 << 20  # of a notice or a model card that is searched
CERTIFICATE = "certificate.json"  # a dataset's own copy
CARDS = (CARD, f"model/{CARD}")
NO_LICENCE = ("NONE", "NOASSERTION")  # SPDX words for "nothing known", which is no licence
_OWN_LICENCE = re.compile(r"LicenseRef-[A-Za-z0-9.-]+")  # SPDX 3.0.1, annex B


@dataclass(frozen=True)
class Coverage:
    """What was found to hold.

    Attributes:
        verdicts: the terms verdict for each teacher and base.
        rechecked: obligations that were looked up in the release itself.
        trusted: obligations that only the signer can vouch for.
        certificates: one for each dataset, with the dataset's name.
        parity: receipts of builds.
        remotes: what is known of each teacher behind an endpoint.
    """

    verdicts: tuple[TermsVerdict, ...]
    rechecked: int
    trusted: int
    certificates: tuple[tuple[str, Certificate], ...]
    parity: tuple[ParityReceipt, ...]
    remotes: tuple[RemoteTeacher, ...] = ()


@dataclass(frozen=True)
class Texts:
    """What obligations are rechecked against: the release's name, and its files' names and text."""

    name: str
    files: frozenset[str]
    read: Callable[[str], str]


def cover(proofs: Proofs, chain: Chain, folder: Folder) -> Coverage:
    """Check that policy covers all that the walk met.

    1. For each teacher and base, by digest: a verdict that permits, its obligations done and
       rechecked.
    2. No verdict forbids, whatever it is about.
    3. For each dataset: the certificate that is its file, of the source and record tree that are
       stated elsewhere too, with an SPDX licence for every record.
    4. Each parity receipt is about an export stage and keeps its own bounds.
    5. For each file in `export/TARGET/`: the receipt of that target, about a stage that made it;
       and no receipt beside these.
    6. For each teacher behind an endpoint: who answered, as the stage says that asked it.

    Raises:
        TrustError: a rule is broken; `details` name the file.
    """
    texts = Texts(
        proofs.release.name,
        frozenset(folder.files),
        lambda name: folder.read(name, MAX_TEXT_BYTES).decode("utf-8", "replace"),
    )
    # 1. and 2.
    verdicts = list(proofs.of(TermsVerdict))
    known = {verdict.teacher.sha256 for _, verdict in verdicts}
    for origin in chain.origins():
        if origin.digest.sha256 not in known:
            kind = origin.annotations.kind
            raise TrustError(
                f"a {kind} without a terms verdict",
                details=[
                    f"{kind} {shown(origin.annotations.name)!r}, sha256:{origin.digest.sha256}",
                    "wanted a terms-verdict statement for this digest",
                ],
            )
    rechecked = trusted = 0
    for item, verdict in verdicts:
        checked = check_terms(item.file, verdict, texts)
        rechecked += checked
        trusted += len(verdict.obligations) - checked
    # 3.
    certificates = _check_datasets(proofs, chain)
    # 4. and 5.
    parity = _check_builds(proofs, chain)
    # 6.
    remotes = check_remotes(proofs, chain)
    return Coverage(
        tuple(verdict for _, verdict in verdicts),
        rechecked,
        trusted,
        certificates,
        parity,
        remotes,
    )


def check_terms(file: str, verdict: TermsVerdict, texts: Texts) -> int:
    """Check one terms verdict; returns how many obligations were looked up in the release.

    Raises:
        TrustError: it does not permit this use, or an obligation is open or not met.
    """
    if verdict.verdict not in PERMITS:
        clause = f"{verdict.row.document}, {verdict.row.clause}" if verdict.row else "no clause"
        raise TrustError(
            "the teacher's terms do not permit this use",
            details=[
                f"{file}: {verdict.verdict} for {shown(verdict.teacher.name)!r}, {shown(clause)}"
            ],
        )
    if verdict.use != USE:
        raise TrustError(
            "the teacher's terms were judged for another use",
            details=[f"{file}: got {shown(verdict.use)!r}, wanted {USE!r}"],
        )
    rechecked = 0
    for duty in verdict.obligations:
        if not duty.done:
            raise TrustError(
                "an obligation of the teacher's terms is open",
                details=[f"{file}: {shown(duty.id)}: {duty.kind} {shown(duty.value)!r}"],
            )
        recheck = RECHECKS.get(duty.kind)
        if recheck is None:
            continue
        rechecked += 1
        if not recheck(duty, texts):
            raise TrustError(
                "an obligation is said to be done, but the release does not show it",
                details=[f"{file}: {shown(duty.id)}: {duty.kind} {shown(duty.value)!r}"],
            )
    return rechecked


def _has_prefix(duty: Obligation, texts: Texts) -> bool:
    return texts.name.startswith(duty.value)


def _has_notice(duty: Obligation, texts: Texts) -> bool:
    return _found(duty.value, (NOTICE,), texts)


def _has_card_text(duty: Obligation, texts: Texts) -> bool:
    return _found(duty.value, CARDS, texts)


def _is_passed_on(duty: Obligation, texts: Texts) -> bool:
    return _has_notice(duty, texts) and _has_card_text(duty, texts)


def _has_user_limit(duty: Obligation, texts: Texts) -> bool:
    grouped = f"{int(duty.value):,}" if duty.value.isascii() and duty.value.isdigit() else ""
    return bool(grouped) and _is_passed_on(duty.model_copy(update={"value": grouped}), texts)


def _has_licence_copy(duty: Obligation, texts: Texts) -> bool:
    """The text of each licence of the SPDX expression, in a file such as `MIT.txt`."""
    try:
        keys = _licensing().license_keys(duty.value)
    except (ExpressionError, IndexError, RecursionError):
        return False
    copies = [licence_file(key) for key in keys]
    return bool(copies) and all(
        copy in texts.files and len(texts.read(copy)) >= MIN_LICENCE_TEXT for copy in copies
    )


def _found(text: str, files: tuple[str, ...], texts: Texts) -> bool:
    """Whether one of these files, where it is there, holds the text."""
    wanted = " ".join(text.split())  # a card may wrap its lines
    there = [name for name in files if name in texts.files]
    return any(wanted in " ".join(texts.read(name).split()) for name in there)


RECHECKS: Mapping[str, Callable[[Obligation, Texts], bool]] = {
    "name_prefix": _has_prefix,
    "notice": _has_notice,
    "card_text": _has_card_text,
    "license_copy": _has_licence_copy,
    "acceptable_use": _is_passed_on,
    "propagate_terms": _is_passed_on,
    "user_limit": _has_user_limit,
}


def _check_datasets(proofs: Proofs, chain: Chain) -> tuple[tuple[str, Certificate], ...]:
    certificates = {item.about: (item, found) for item, found in proofs.of(Certificate)}
    heads = {row.sha256: row for row in proofs.release.datasets}
    found = []
    for stage in chain.datasets():
        if stage.sha256 not in certificates:
            raise TrustError(
                "a dataset without a certificate",
                details=[f"dataset {shown(stage.name)!r}, sha256:{stage.sha256}"],
            )
        item, certificate = certificates[stage.sha256]
        sources = {end.digest.sha256 for end in stage.inputs if end.annotations.kind == SOURCE}
        check_certificate(item, certificate, sources, heads.get(stage.sha256))
        if stage.files.get(CERTIFICATE) != sha256_bytes(pretty(item.statement.predicate).encode()):
            raise TrustError(
                "a certificate that is not the one in its dataset",
                details=[f"{item.file}: not the file {CERTIFICATE} of {shown(stage.name)!r}"],
            )
        found.append((stage.name, certificate))
    strange = certificates.keys() ^ {stage.sha256 for stage in chain.datasets()}
    if strange or heads.keys() != certificates.keys():
        raise TrustError(
            "certificates, datasets and the release statement do not agree",
            details=[
                f"sha256:{sha256}"
                for sha256 in sorted(strange | (heads.keys() ^ certificates.keys()))
            ],
        )
    return tuple(found)


def check_certificate(
    item: Signed, certificate: Certificate, sources: set[str], head: DatasetHead | None
) -> None:
    """Check one certificate against the dataset's inputs and the release statement.

    Raises:
        TrustError: its numbers, licences, source or record tree do not fit.
    """
    problems = []
    if certificate.accepted + certificate.rejected != certificate.records:
        problems.append(
            f"{certificate.accepted} accepted and {certificate.rejected} rejected "
            f"are not {certificate.records} records"
        )
    if sum(certificate.licences.values()) != certificate.accepted:
        problems.append(f"its licences do not add up to {certificate.accepted} records")
    if certificate.tree.size != certificate.accepted:
        problems.append(f"its record tree has {certificate.tree.size} leaves")
    problems += [
        f"{shown(name)!r} is not an SPDX licence expression"
        for name in certificate.licences
        if not is_spdx(name)
    ]
    source = (certificate.source.model_extra or {}).get("sha256")
    if not isinstance(source, str) or not SHA256_HEX.fullmatch(source) or source not in sources:
        problems.append(f"its source {shown(source)!r} is not an input of the dataset")
    tree = certificate.tree
    if head is None or (head.size, head.head) != (tree.size, tree.head):
        problems.append("its record tree is not the one in the release statement")
    if problems:
        raise TrustError(
            "a certificate does not hold", details=[f"{item.file}: {line}" for line in problems]
        )


@lru_cache(maxsize=1)
def _licensing() -> Any:
    return get_spdx_licensing()  # 60 ms


def is_spdx(text: str) -> bool:
    """Whether a text is an SPDX licence expression; `LicenseRef-` names are, `NONE` is not."""
    if not text.strip() or text in NO_LICENCE or len(text) > MAX_EXPRESSION:
        return False
    try:
        parsed = _licensing().parse(text)
        unknown = _licensing().unknown_license_keys(parsed)
    except (ExpressionError, IndexError, RecursionError):  # the parser leaks the last two
        return False
    return all(_OWN_LICENCE.fullmatch(key) for key in unknown)


def _check_builds(proofs: Proofs, chain: Chain) -> tuple[ParityReceipt, ...]:
    exports = {stage.sha256: stage for stage in chain.stages if stage.kind == EXPORT_KIND}
    found = list(proofs.of(ParityReceipt))
    for item, receipt in found:
        if item.about not in exports:
            raise TrustError(
                "a parity receipt about something that is no build",
                details=[f"{item.file}: about sha256:{item.about}"],
            )
        check_parity(item.file, receipt)
    # By file, as two stages may have made files of equal bytes.
    receipts = {(item.about, receipt.target): item.file for item, receipt in found}
    shipped = set()
    for name, sha256 in released(proofs, EXPORT).items():
        target = name.partition("/")[0]
        received = {
            (about, of)
            for about, of in receipts
            if of == target and made(exports[about], name, sha256)
        }
        if not received:
            raise TrustError(
                "a build without a parity receipt",
                details=[
                    f"{EXPORT}{shown(name)}: no receipt of target {shown(target)!r} "
                    "is about the stage that made it"
                ],
            )
        shipped |= received
    if strange := receipts.keys() - shipped:
        raise TrustError(
            "a parity receipt of a build that is not here",
            details=sorted(
                f"{receipts[key]}: no file in {EXPORT}{shown(key[1])}/" for key in strange
            ),
        )
    return tuple(receipt for _, receipt in found)


def check_parity(file: str, receipt: ParityReceipt) -> None:
    """Check that a build differs from its model by no more than the receipt itself allows.

    Raises:
        TrustError: it differs by more, or by something that is no number.
    """
    close = receipt.kl_nats_per_token <= receipt.max_kl
    agrees = receipt.top1_agreement >= receipt.min_agreement
    if not (close and agrees):
        raise TrustError(
            "a build differs from its model by more than its receipt allows",
            details=[
                f"{file}: KL {receipt.kl_nats_per_token} (at most {receipt.max_kl}), "
                f"top-1 agreement {receipt.top1_agreement} (at least {receipt.min_agreement})"
            ],
        )
