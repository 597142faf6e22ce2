"""Encoding: characters that no writer meant.

Two checks, because their certainty differs. `Encoding` finds what is damage for sure:
replacement characters, control characters and code points that Unicode sets aside for no text.
`Mojibake` finds the signs of UTF-8 read as Latin-1 or Windows-1252; a request about a display
fault may quote them on purpose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from overproof.data.checks import Candidate, Finding

_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(
    chr((plane << 16) | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)
_DAMAGE = {
    "replacement-character": re.compile("\ufffd+"),
    # C0, DEL and C1 but for tab, line feed, form feed, carriage return and next line, which are
    # white space that people and programs do write.
    "control-character": re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]+"),
    "noncharacter": re.compile(f"[{_NONCHARACTERS}]+"),
}

# Continuation bytes 80 to BF as Latin-1 and as Windows-1252 show them.
_CONTINUED = (
    "\x80-\xbf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d"
    "\u2018\u2019\u201c\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178"
)
_MOJIBAKE = re.compile(
    f"[\xc2\xc3][{_CONTINUED}]"  # two bytes: accented letters, no-break space
    f"|\xe2[\x80\u20ac][{_CONTINUED}]"  # three bytes: quotation marks, dashes, ellipsis
    f"|\xef\xbb\xbf|\xef\xbf\xbd"  # byte order mark, replacement character
    f"|(?:[\xe3-\xed][{_CONTINUED}]{{2}}){{2}}"  # two in a row: Chinese, Japanese, Korean
    f"|\xf0[\x9f\u0178][{_CONTINUED}]{{2}}"  # four bytes: emoji
)


@dataclass(frozen=True)
class Encoding:
    """Finds U+FFFD, control characters and noncharacters."""

    name: str = "encoding"
    version: str = "1"

    def __call__(self, candidate: Candidate) -> list[Finding]:
        """One finding for each run of damaged characters."""
        return [
            Finding(kind, part, match.start(), match.end())
            for part, text in candidate.record.parts()
            if not (text.isascii() and text.isprintable())
            for kind, pattern in _DAMAGE.items()
            for match in pattern.finditer(text)
        ]


@dataclass(frozen=True)
class Mojibake:
    """Finds the signs of UTF-8 that was read as Latin-1 or Windows-1252."""

    name: str = "mojibake"
    version: str = "1"

    def __call__(self, candidate: Candidate) -> list[Finding]:
        """One finding for each run of such signs."""
        return [
            Finding("misread-utf8", part, match.start(), match.end())
            for part, text in candidate.record.parts()
            if not text.isascii()
            for match in _MOJIBAKE.finditer(text)
        ]
