"""SPDX expressions and their classes."""

from __future__ import annotations

import pytest

from overproof.core.errors import PolicyError, UsageError
from overproof.policy import licences
from overproof.policy.licences import LicenceClass, classify, meet, normalise, parse, table


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mit and apache-2.0", "MIT AND Apache-2.0"),
        ("cc0-1.0", "CC0-1.0"),
        ("GPL-2.0+", "GPL-2.0-or-later"),
        ("(MIT)", "MIT"),
        ("LicenseRef-Owned", "LicenseRef-Owned"),
    ],
)
def test_normalises(text, wanted) -> None:
    assert normalise(text) == wanted
    assert normalise(wanted) == wanted


@pytest.mark.parametrize(
    "text",
    ["", " ", "Apache 2.0", "MIT AND", "public domain", "LicenseRef-Mine", "(", "WITH", "()"],
)
def test_unknown_licences_are_refused_by_name(text) -> None:
    with pytest.raises(UsageError) as error:
        parse(text)
    assert repr(text) in error.value.what
    assert error.value.hint


def test_an_endless_expression_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="12,000 characters"):
        parse("(MIT OR " * 1500)


def test_what_a_model_may_learn_from() -> None:
    licences.demand(["MIT", "CC-BY-4.0", "GPL-3.0-only OR MIT"], "mine")
    refused = ["CC-BY-NC-4.0", "GPL-3.0-only", "LicenseRef-scancode-proprietary-license"]
    with pytest.raises(PolicyError, match="licences in mine") as error:
        licences.demand(["MIT", *refused], "mine")
    assert [line.split(":")[0] for line in error.value.details] == refused


def test_the_nearest_licence_is_named() -> None:
    with pytest.raises(UsageError) as error:
        parse("Apache 2.0")
    assert error.value.hint == "did you mean 'Apache-2.0'?"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("MIT", "permissive"),
        ("CC0-1.0", "permissive"),
        ("LicenseRef-Owned", "permissive"),
        ("CC-BY-4.0", "attribution"),
        ("ODC-By-1.0", "attribution"),
        ("CC-BY-SA-4.0", "share-alike"),
        ("GPL-3.0-only", "share-alike"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "share-alike"),
        ("CC-BY-NC-4.0", "non-commercial"),
        ("CC-BY-NC-SA-4.0", "non-commercial"),
        ("CC-BY-ND-4.0", "no-derivatives"),
        ("CC-BY-NC-ND-4.0", "no-derivatives"),
        ("JSON", "unknown"),
        ("MIT AND CC-BY-NC-4.0", "non-commercial"),
        ("MIT OR CC-BY-NC-4.0", "permissive"),
        ("MIT AND (CC-BY-4.0 OR GPL-3.0-only)", "attribution"),
        ("JSON OR CC-BY-ND-4.0", "no-derivatives"),
    ],
)
def test_classes(text, kind) -> None:
    assert parse(text).kind == kind


def test_keys_are_sorted_and_single() -> None:
    assert parse("MIT OR (CC-BY-4.0 AND MIT)").keys == ("CC-BY-4.0", "MIT")


def test_verdicts_of_the_classes() -> None:
    assert [kind.verdict for kind in LicenceClass] == [
        "unknown",
        "deny",
        "deny",
        "needs_approval",
        "allow_with",
        "allow",
    ]


def test_no_pattern_of_the_data_file_is_dead() -> None:
    keys = [str(key) for key in licences._licensing().known_symbols]
    for entry in table().classes.values():
        for pattern in entry.licences:
            assert any(licences.fnmatchcase(key, pattern) for key in keys), pattern
    assert set(table().classes) == set(LicenceClass) - {LicenceClass.UNKNOWN}


def test_meet_takes_the_strictest() -> None:
    assert meet([classify("MIT"), classify("CC-BY-SA-4.0")]) is LicenceClass.SHARE_ALIKE
    assert meet([]) is LicenceClass.PERMISSIVE
