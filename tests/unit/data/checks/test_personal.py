"""Personal data: what is found, and what everyday numbers are not."""

import pytest

from overproof.data.checks import Candidate
from overproof.data.checks.personal import Personal, find
from overproof.data.records import parse

# Numbers from the documentation of each scheme, test numbers, or made with a right check digit.
FOUND = [
    ("write to anna.b+shop@mail.web.de please", "email", "anna.b+shop@mail.web.de"),
    ("josé@correo.es", "email", "josé@correo.es"),
    ("ring +44 20 7183 8750 now", "phone", "+44 20 7183 8750"),
    ("call me on 07400 123456", "phone", "07400 123456"),
    ("call me on 07400123456", "phone", "07400123456"),
    ("I am at (650) 253-0000 until five", "phone", "(650) 253-0000"),
    ("Mein Handy: 0171 1234567", "phone", "0171 1234567"),
    ("je suis au 06 12 34 56 78", "phone", "06 12 34 56 78"),
    ("account DE89 3704 0044 0532 0130 00 and more", "iban", "DE89 3704 0044 0532 0130 00"),
    ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
    ("gb82 west 1234 5698 7654 32 was wrong", "iban", "gb82 west 1234 5698 7654 32"),
    ("card 4111 1111 1111 1111 expires", "payment-card", "4111 1111 1111 1111"),
    ("378282246310005", "payment-card", "378282246310005"),
    ("5555-5555-5555-4444.", "payment-card", "5555-5555-5555-4444"),
    ("my SSN is 123-45-6789", "national-id-us", "123-45-6789"),
    ("DNI 12345678Z", "national-id-es", "12345678Z"),
    ("NIE X-1234567-L", "national-id-es", "X-1234567-L"),
    ("codice fiscale RSSMRA85T10A562S", "national-id-it", "RSSMRA85T10A562S"),
    ("hetu 131052-308T", "national-id-fi", "131052-308T"),
    ("身份证 11010519491231002X", "national-id-cn", "11010519491231002X"),
    ("CPF 390.533.447-05", "national-id-br", "390.533.447-05"),
    ("AHV 756.9217.0769.85", "national-id-ch", "756.9217.0769.85"),
    ("my BSN is 111222333", "national-id-nl", "111222333"),
    ("PESEL 44051401359", "national-id-pl", "44051401359"),
    ("NHS number 943 476 5919", "national-id-gb", "943 476 5919"),
    ("Aadhaar 2341 2341 2346", "national-id-in", "2341 2341 2346"),
    ("numéro 2 95 10 99 126 111 93", "national-id-fr", "2 95 10 99 126 111 93"),
    ("rijksregister 85.07.30-033.28", "national-id-be", "85.07.30-033.28"),
    ("my SIN is 123-456-782", "national-id-ca", "123-456-782"),
    ("CPR 211062-5629", "national-id-dk", "211062-5629"),
    ("Steuer-ID 36 574 261 809", "national-id-de", "36 574 261 809"),
    ("주민등록번호 971013-9019902", "national-id-kr", "971013-9019902"),
    ("CURP BOXW310820HNERXN09", "national-id-mx", "BOXW310820HNERXN09"),
    ("personnummer 880320-0016", "national-id-se", "880320-0016"),
    ("my PAN is ACUPA7085R", "national-id-in", "ACUPA7085R"),
    ("key AKIAIOSFODNN7EXAMPLE", "secret-aws-access-key", "AKIAIOSFODNN7EXAMPLE"),
    ("use ghp_" + "aB3" * 12, "secret-github-token", "ghp_" + "aB3" * 12),
    ("https://bob:hunter22@shop.de/x", "secret-basic-auth-credentials", "://bob:hunter22@"),
    ("-----BEGIN RSA PRIVATE KEY-----", "secret-private-key", "BEGIN RSA PRIVATE KEY"),
]
NOT_FOUND = [
    "order 48213 from 12 March 2024",
    "Order 4471-2290-11, paid 12/03/2024 at 14:30",
    "tracking JD014600003828293210, parcel 1Z999AA10123456784",
    "invoice 2024-03-12 4521 over 1,299.00 EUR",
    "ticket 020 7946 0958 is open since 2023",
    "order number 07400123456",
    "reference 2025551234",
    "IMEI 490154203237518",
    "call 1-800-275-2273, the free line",
    "flight BA0123 on 24.11.2026 at 07:45, seat 14C",
    "my internet gives 94.2 of 1000 Mbit/s since 18:00",
    "error 0x80070057 at 192.168.1.1:8080 version 10.0.19045.3803",
    "ISBN 978-3-16-148410-0",
    "write to support@example.com or a@shop.test",
    "@handle on the platform, a @ b, x@y",
    "https://shop.example.de/p/12345678901234567890?x=1#top",
    "the number 111222333 on the box",
    "DE12 is a size, DE89 3704 0044 0532 0130 01 is mistyped",
    "4111 1111 1111 1112 is mistyped",
    "my password: it does not work",
    "between 2019 and 2024 we paid 12 500 a year",
    "eyJhbGciOi is how it begins",
]


@pytest.mark.parametrize(("text", "kind", "value"), FOUND, ids=[row[0][:24] for row in FOUND])
def test_personal_data_is_found_at_its_place(text: str, kind: str, value: str) -> None:
    assert [(k, text[start:end]) for k, start, end in find(text)] == [(kind, value)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("pay 4111\u00a01111\u00a01111\u00a01111", "payment-card"),
        ("pay 4111\u20111111\u20111111\u20111111", "payment-card"),
        ("pay \uff14111 1111 1111 1111", "payment-card"),
        ("to DE89\u202f3704\u202f0044\u202f0532\u202f0130\u202f00", "iban"),
        ("write to bob\uff20firm.com", "email"),
        ("call +44\u00a020\u00a07183\u00a08750", "phone"),
    ],
)
def test_other_spaces_hyphens_and_digits_hide_nothing(text: str, kind: str) -> None:
    """The canonical form reads most of them as the plain ones, so a check must too."""
    [(got, start, end)] = find(text)
    assert got == kind and text[start:end] in text


@pytest.mark.parametrize("text", NOT_FOUND)
def test_everyday_numbers_are_not_personal_data(text: str) -> None:
    assert find(text) == []


def test_several_are_in_the_order_of_the_text() -> None:
    text = "call +44 20 7183 8750, write a@web.de, or +44 20 7183 8751"
    assert [kind for kind, _, _ in find(text)] == ["phone", "email", "phone"]


def test_a_finding_names_the_turn_and_never_the_value() -> None:
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "write to anna@web.de"},
    ]
    (finding,) = Personal()(Candidate(parse({"messages": turns}), b"", b""))
    assert finding.to_json() == {
        "kind": "email",
        "part": "messages[1].content",
        "start": 9,
        "end": 20,
    }
    assert "anna" not in str(finding)


def test_the_version_names_the_libraries_that_decide() -> None:
    version = Personal().version
    assert all(name in version for name in ("phonenumbers 9", "python-stdnum 2", "detect-secrets"))


def test_the_place_code_that_the_library_does_not_know_is_no_error() -> None:
    assert find("number 999999194912310021") == []
