"""National identity numbers, checked by python-stdnum.

A check digit alone lets one number in ten through, and order numbers are numbers. So a number
counts only in its written form (hyphens, letters, a date inside), or, where the bare number says
little, beside the word for it. The share of random digits that pass was measured for each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stdnum.be import nn
from stdnum.br import cpf
from stdnum.ca import sin
from stdnum.ch import ssn as ahv
from stdnum.cn import ric
from stdnum.de import idnr
from stdnum.dk import cpr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.in_ import aadhaar, pan
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.mx import curp
from stdnum.nl import bsn
from stdnum.pl import pesel
from stdnum.se import personnummer
from stdnum.us import ssn

CUE_CHARACTERS = 40  # how far before a number its word may stand


@dataclass(frozen=True)
class NationalId:
    """One kind of number: how it is written, who checks it, which word must stand before it."""

    kind: str
    written: re.Pattern[str]
    is_valid: Callable[[str], bool]
    cue: re.Pattern[str] | None = None


def _id(
    country: str, written: str, is_valid: Callable[[str], bool], cue: str | None = None
) -> NationalId:
    # No letter or digit may touch the number, nor a hyphen or point that joins it to more digits.
    bounded = rf"(?<![\w])(?<!\d[-.]){written}(?![-.]?\w)"
    return NationalId(
        f"national-id-{country}",
        re.compile(bounded, re.IGNORECASE | re.ASCII),
        is_valid,
        re.compile(cue, re.IGNORECASE) if cue else None,
    )


IDS = (
    _id("be", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", nn.is_valid),
    _id("br", r"\d{3}\.\d{3}\.\d{3}-\d\d", cpf.is_valid),
    _id("ca", r"\d{3}[ -]?\d{3}[ -]?\d{3}", sin.is_valid, r"\bSIN\b|social insurance"),
    _id("ch", r"756\.?\d{4}\.?\d{4}\.?\d\d", ahv.is_valid),
    _id("cn", r"\d{17}[\dX]", ric.is_valid),
    _id("de", r"\d\d ?\d{3} ?\d{3} ?\d{3}", idnr.is_valid, r"steuer|\bidnr|tax id"),
    _id("dk", r"\d{6}-?\d{4}", cpr.is_valid, r"\bCPR\b|personnummer"),
    _id("es", r"\d{8}-?[A-Z]", dni.is_valid),
    _id("es", r"[XYZ]-?\d{7}-?[A-Z]", nie.is_valid),
    _id("fi", r"\d{6}[-+A-FU-Y]\d{3}[\dA-Z]", hetu.is_valid),
    _id("fr", r"[12] ?\d\d ?\d\d ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d", nir.is_valid),
    _id("gb", r"\d{3}[ -]?\d{3}[ -]?\d{4}", nhs.is_valid, r"\bNHS\b"),
    _id("in", r"\d{4} ?\d{4} ?\d{4}", aadhaar.is_valid, r"aadhaa?r|आधार"),
    _id("in", r"[A-Z]{5}\d{4}[A-Z]", pan.is_valid, r"\bPAN\b"),
    _id("it", r"[A-Z]{6}[\dL-V]{2}[A-Z][\dL-V]{2}[A-Z][\dL-V]{3}[A-Z]", codicefiscale.is_valid),
    _id("kr", r"\d{6}-\d{7}", rrn.is_valid),
    _id("mx", r"[A-Z]{4}\d{6}[HM][A-Z]{5}[\dA-Z]\d", curp.is_valid),
    _id("nl", r"\d{9}", bsn.is_valid, r"\bBSN\b|burgerservicenummer"),
    _id("pl", r"\d{11}", pesel.is_valid, r"\bPESEL\b"),
    _id("se", r"(?:\d\d)?\d{6}[-+]\d{4}", personnummer.is_valid),
    _id("us", r"\d{3}-\d{2}-\d{4}", ssn.is_valid),
)


def find(text: str) -> Iterator[tuple[str, int, int]]:
    """Kind, start and end of each national identity number in a text."""
    for known in IDS:
        for match in known.written.finditer(text):
            before = text[max(0, match.start() - CUE_CHARACTERS) : match.start()]
            if known.cue and not known.cue.search(before):
                continue
            if _is_valid(known, match[0]):
                yield known.kind, match.start(), match.end()


def _is_valid(known: NationalId, number: str) -> bool:
    try:
        return bool(known.is_valid(number.upper()))
    except (KeyError, IndexError, ValueError):
        return False  # stdnum.cn.ric fails so on a place code that its table does not know
