"""Personal data and secrets, found by validators: a pattern proposes, a library decides.

Found: e-mail addresses, telephone numbers (phonenumbers), IBANs, payment cards and national
identity numbers (python-stdnum), credentials with a recognisable form (detect-secrets).
Not found: names, postal addresses, dates of birth, passwords in prose. They need a language
model or a list, and a certificate that claimed them would promise too much.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version

import phonenumbers
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector
from phonenumbers import Leniency, PhoneNumberMatcher, PhoneNumberType
from stdnum import iban, luhn

from overproof.data.checks import Candidate, Finding, national

Span = tuple[str, int, int]  # kind, start, end

# -- e-mail -----------------------------------------------------------------------------------
_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@((?:[\w-]{1,63}\.){1,8}(?:xn--[a-z0-9-]{1,59}|[^\W\d_]{2,24}))\b"
)
# Reserved for documentation and tests (RFC 2606, RFC 6761): nobody has such an address.
_RESERVED_DOMAIN = re.compile(
    r"(?:^|\.)(?:example(?:\.(?:com|org|net))?|test|invalid|localhost)$", re.IGNORECASE
)

_HYPHENS = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"

MIN_ID_DIGITS = 4  # an Indian PAN has four, every other number more
# -- IBAN and payment cards -------------------------------------------------------------------
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}")
IBAN_CHARACTERS = range(15, 35)  # shortest (Norway) and longest allowed (ISO 13616)
_CARD = re.compile(r"(?<![\w.])(?<!\d-)\d(?:[ -]?\d){12,18}(?![.-]?\d)(?!\w)")
# Issuer ranges of the card schemes (ISO/IEC 7812): American Express, Diners, JCB, Visa,
# Mastercard, Discover, UnionPay, Maestro. Luhn's digit alone lets one number in ten through.
_CARD_ISSUER = re.compile(
    r"3[47]\d{13}$|3(?:0[0-5]|[689]\d)\d{11}$|35(?:2[89]|[3-8]\d)\d{12}$"
    r"|4\d{12}(?:\d{3})?(?:\d{3})?$"
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}$"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}(?:\d{3})?$|62\d{14,17}$|(?:50|5[6-9]|6[0379])\d{10,17}$"
)

# -- telephone --------------------------------------------------------------------------------
# Countries whose national writing is tried; a number with + or 00 is recognised for any country.
PHONE_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "IN", "CN")
# Seven digits at least: fewer are no full number in any of these countries.
_PHONE_LIKE = re.compile(r"\+?\(?\d(?:[\s().\-/\u2010-\u2015]{0,3}\d){6,}")
# Digits with a plus sign or in groups: bare digits are a number like any other.
_GROUPED = re.compile(r"\+|\d[\s().\-/\u2010-\u2015]{1,3}\d")
_PHONE_CUE = re.compile(
    r"\b(?:call|phone|t[eé]l|mobile?|m[oó]vil|cell|text|ring|reach|whats ?app|fax|sms|handy|dial"
    r"|contact|ruf|appel|portable|ll[aá]m)",
    re.IGNORECASE,
)
_NOT_PHONE_CUE = re.compile(
    r"\b(?:order|invoice|ticket|booking|reference|ref|case|claim|tracking|parcel|serial|policy"
    r"|account|contract|customer|member|reservation|model|sku|isbn)\b[^\n.!?]*$",
    re.IGNORECASE,
)
CUE_CHARACTERS = 40  # how far before a number a word speaks for or against it
# Numbers of firms, not of persons.
_BUSINESS_LINES = {
    PhoneNumberType.TOLL_FREE,
    PhoneNumberType.PREMIUM_RATE,
    PhoneNumberType.SHARED_COST,
    PhoneNumberType.UAN,
}

# -- secrets ----------------------------------------------------------------------------------
# Detectors of credentials by form. Those that go by entropy or by a word such as "password" are
# made for source code and find nothing but prose here; public IP addresses are no credential.
_SKIPPED_SECRETS = (
    "Base64 High Entropy String",
    "Hex High Entropy String",
    "Secret Keyword",
    "Public IP (ipv4)",
)
# Each of the forms has a run of at least so many characters without white space, or the words.
_SECRET_LIKE = re.compile(r"\S{20}|://\S+@|PRIVATE KEY|\b(?:AKC|AP[\dA-F])\w{8}")


@dataclass(frozen=True)
class Personal:
    """Finds personal data and secrets; a finding says kind and place, never the value."""

    name: str = "personal"
    version: str = field(
        default_factory=lambda: (
            f"2, phonenumbers {version('phonenumbers')}, python-stdnum "
            f"{version('python-stdnum')}, detect-secrets {version('detect-secrets')}"
        )
    )

    def __call__(self, candidate: Candidate) -> list[Finding]:
        """Every finding, in the order of the text; the surer one where two overlap."""
        return [
            Finding(kind, part, start, end)
            for part, text in candidate.record.parts()
            for kind, start, end in find(text)
        ]


def find(text: str) -> list[Span]:
    """Kind, start and end of each piece of personal data in a text.

    White space, hyphens and digits of other scripts are read as the plain ones.

    1. Cheap signs (an @, digits, a long run without white space) decide which finders run.
    2. Finders run from the surest to the least sure; what overlaps an earlier finding is left out.
    """
    # 1. and 2.
    text = text if text.isascii() else text.translate(_plain())
    found: list[Span] = []
    if _SECRET_LIKE.search(text):
        _keep(found, _secrets(text))
    if "@" in text:
        _keep(found, _emails(text))
    if sum(map(text.count, "0123456789")) >= MIN_ID_DIGITS:
        _keep(found, _ibans(text))
        _keep(found, _cards(text))
        _keep(found, national.find(text))
        if _PHONE_LIKE.search(text):
            _keep(found, _phones(text))
    return sorted(found, key=lambda span: span[1:])


@cache
def _plain() -> dict[int, str]:
    """One character for one, so that places in the text stay true.

    The canonical form folds most of these too: what a check did not see would stand in the
    certified record.
    """
    return (
        {ord(char): "-" for char in _HYPHENS}
        | {ord("\uff20"): "@", ord("\ufe6b"): "@"}
        | {code: " " for code in range(128, 0x3001) if chr(code).isspace()}
        | {
            code: str(unicodedata.digit(chr(code)))
            for code in range(128, 0x20000)
            if unicodedata.category(chr(code)) == "Nd"
        }
    )


def _keep(found: list[Span], more: Iterable[Span]) -> None:
    for kind, start, end in more:
        if all(end <= other[1] or start >= other[2] for other in found):
            found.append((kind, start, end))


def _emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text):
        if not _RESERVED_DOMAIN.search(match[1]):
            yield "email", match.start(), match.end()


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        # The pattern may run on into the next word, so every length of an IBAN is tried.
        ends = [place for place, sign in enumerate(match[0], 1) if sign not in " -"]
        for count in IBAN_CHARACTERS:
            if count <= len(ends) and iban.is_valid(match[0][: ends[count - 1]]):
                yield "iban", match.start(), match.start() + ends[count - 1]
                break


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        number = re.sub("[ -]", "", match[0])
        if _CARD_ISSUER.match(number) and luhn.is_valid(number):
            yield "payment-card", match.start(), match.end()


def _phones(text: str) -> Iterator[Span]:
    """Telephone numbers of persons, in any of three writings:

    1. internationally: valid anywhere;
    2. nationally after a word such as "call": valid in one of the regions;
    3. nationally without one: grouped exactly as that country groups its numbers, not bare
       digits, and no word such as "order" before it.

    Free and premium lines are left out, and so is what would be one in another region.
    """
    cued = bool(_PHONE_CUE.search(text))
    if not cued and not _GROUPED.search(text):
        return
    found: list[tuple[int, int]] = []
    firms: list[tuple[int, int]] = []
    for region in (None, *PHONE_REGIONS):
        for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
            span = (match.start, match.end)
            exact = region is not None and _is_exactly_grouped(match.raw_string, region)
            if phonenumbers.number_type(match.number) in _BUSINESS_LINES:
                firms += [span] if region is None or exact else []
            elif region is None or _is_personal(text, span, cued=cued, exact=exact):
                found.append(span)
    for start, end in found:
        if all(end <= other[0] or start >= other[1] for other in firms):
            yield "phone", start, end


def _is_personal(text: str, span: tuple[int, int], *, cued: bool, exact: bool) -> bool:
    before = text[max(0, span[0] - CUE_CHARACTERS) : span[0]]
    # 2.
    if cued and _PHONE_CUE.search(before):
        return True
    # 3.
    bare = text[span[0] : span[1]].isdigit()
    return exact and not bare and not _NOT_PHONE_CUE.search(before)


def _is_exactly_grouped(number: str, region: str) -> bool:
    return PhoneNumberMatcher(number, region, leniency=Leniency.EXACT_GROUPING).has_next()


def _secrets(text: str) -> Iterator[Span]:
    for detector in _detectors():
        for pattern in detector.denylist:
            for match in pattern.finditer(text):
                # Asked again because some look into what their pattern matched.
                if any(detector.analyze_string(match[0])):
                    yield _secret_kind(detector), match.start(), match.end()


def _secret_kind(detector: RegexBasedDetector) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", detector.secret_type.lower()).strip("-")
    return f"secret-{words}"


@cache
def _detectors() -> tuple[RegexBasedDetector, ...]:
    known = get_mapping_from_secret_type_to_class()
    detectors = (known[name]() for name in sorted(known) if name not in _SKIPPED_SECRETS)
    return tuple(found for found in detectors if isinstance(found, RegexBasedDetector))
