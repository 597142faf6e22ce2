from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trust_release
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from overproof.core.errors import TrustError, UsageError
from overproof.trust.tlog import (
    Checkpoint,
    LogProof,
    Note,
    NoteKey,
    sign_note,
    write_log,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors/trust/signed-note.json").read_text(encoding="utf-8")
)
TEXT, LINE, OTHER = VECTORS["text"], VECTORS["line"], VECTORS["other_line"]
PETER, ENOCH = NoteKey.parse(VECTORS["vkey"]), NoteKey.parse(VECTORS["other_vkey"])
SECRET = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["seed"]))


def note(*lines: str) -> Note:
    return Note.parse((TEXT + "\n" + "".join(lines)).encode())


def test_we_sign_like_the_reference() -> None:
    assert sign_note(TEXT, "PeterNeumann", SECRET).encode().decode() == TEXT + "\n" + LINE


def test_reference_notes_verify() -> None:
    note(LINE).verify(PETER)
    note(LINE, OTHER).verify(PETER)
    note(LINE, OTHER).verify(ENOCH)
    note(LINE, LINE, OTHER).verify(PETER)


def test_signatures_that_do_not_count() -> None:
    with pytest.raises(TrustError, match="not signed"):
        note(OTHER).verify(PETER)
    forged = LINE.replace("x08go/ZJ", "x08go/ZK")
    for lines in ((forged,), (LINE, forged)):
        with pytest.raises(TrustError, match="does not verify"):
            note(*lines).verify(PETER)
    same_id = replace(PETER, name="Somebody")
    with pytest.raises(TrustError, match="not signed"):
        note(LINE).verify(same_id)


def test_example_of_the_specification() -> None:
    found = Note.parse(VECTORS["spec_example"].encode())
    assert found.text.endswith("ed è subito sera.\n")
    assert found.signatures[0].name == "quasimodo.example/salvatore"
    assert found.encode().decode() == VECTORS["spec_example"]


@pytest.mark.parametrize("vkey", [*VECTORS["bad_vkeys"], "", "+", "a+b", "PeterNeumann++AQ=="])
def test_bad_vkeys(vkey: str) -> None:
    with pytest.raises(TrustError):
        NoteKey.parse(vkey)


def test_mangled_vkeys() -> None:
    vkey = VECTORS["vkey"]
    for at in range(len(vkey)):
        for changed in (
            vkey[:at],
            vkey[at + 1 :],
            vkey[:at] + chr(ord(vkey[at]) + 1) + vkey[at + 1 :],
        ):
            with pytest.raises(TrustError):
                NoteKey.parse(changed)


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        (TEXT + "\n").encode(),
        (TEXT + "\n" + LINE[:-1]).encode(),
        b"\x01" + (TEXT + "\n" + LINE).encode(),
        b"\xff" + (TEXT + "\n" + LINE).encode(),
        (TEXT + "\n— Bad Name x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZI=\n").encode(),
        (TEXT + "\n— Bad+Name x08go/ZJ\n").encode(),
        (TEXT + "\n" + LINE + "Unexpected line.\n").encode(),
        (TEXT + "\n" + LINE.replace("—", "-")).encode(),
        (TEXT + "\n" + LINE.replace("wJnAM=", "wJnAN=")).encode(),
        (TEXT + "\n" + LINE * 101).encode(),
        (TEXT + "\n" + LINE).replace("\n", "\r\n").encode(),
        (TEXT + "\n— PeterNeumann x08goA==\n").encode()[:-2] + b"\n",
        (TEXT + "\n— PeterNeumann x08g\n").encode(),
        b"x" * (1 << 21),
        b"",
    ],
)
def test_malformed_notes(data: bytes) -> None:
    with pytest.raises(TrustError):
        Note.parse(data)


def test_a_note_ends_its_text_with_a_newline() -> None:
    with pytest.raises(UsageError):
        sign_note("no newline", "name", SECRET)


KEY = trust_release.signing_key().log_key()
ORIGIN = "overproof.dev/test/0123456789abcdef"
LOG = NoteKey(ORIGIN, KEY.public_key().public_bytes_raw())
ENTRIES = [b"%d" % i for i in range(13)]
SIGNED, PROOFS = write_log(ENTRIES, ORIGIN, KEY)


def test_log_round_trip() -> None:
    checkpoint = Checkpoint.open(SIGNED, LOG)
    assert (checkpoint.origin, checkpoint.size) == (ORIGIN, 13)
    for entry, proof in zip(ENTRIES, PROOFS, strict=True):
        again = LogProof.parse(proof.encode())
        assert again == proof
        again.check(entry, checkpoint)
        with pytest.raises(TrustError):
            again.check(entry + b"x", checkpoint)


def signed(text: str, name: str = ORIGIN) -> bytes:
    return sign_note(text, name, KEY).encode()


ROOT = SIGNED.decode().split("\n")[2]


@pytest.mark.parametrize(
    "text",
    [
        f"{ORIGIN}\n13\n{ROOT}\nextension\n",
        f"{ORIGIN}\n13\n",
        f"\n13\n{ROOT}\n",
        f"{ORIGIN}\n013\n{ROOT}\n",
        f"{ORIGIN}\n+13\n{ROOT}\n",
        f"{ORIGIN}\n{2**63}\n{ROOT}\n",
        f"{ORIGIN}\n13\n{ROOT[:-1]}\n",
        f"{ORIGIN}\n13\nAAAA\n",
        f"overproof.dev/other\n13\n{ROOT}\n",
    ],
)
def test_checkpoints_are_read_strictly(text: str) -> None:
    with pytest.raises(TrustError):
        Checkpoint.open(signed(text), LOG)


def test_an_unpinned_cosignature_is_refused() -> None:
    found = Note.parse(SIGNED)
    double = replace(found, signatures=(found.signatures[0], found.signatures[0]))
    with pytest.raises(TrustError, match="got 2 signatures"):
        Checkpoint.open(double.encode(), LOG)


PROOF = PROOFS[5].encode()
HEAD = PROOF.partition(b"\n\n")[0].split(b"\n")


def proof_of(*lines: bytes) -> bytes:
    return b"\n".join(lines) + b"\n\n" + SIGNED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        SIGNED,
        PROOF.replace(b"@v1", b"@v2"),
        PROOF.replace(b"index 5", b"index 05"),
        PROOF.replace(b"index 5", b"index  5"),
        PROOF.replace(b"index 5", b"index -5"),
        PROOF.replace(b"index 5", b"Index 5"),
        PROOF.replace(b"\nindex 5", b"\nextra AAAA\nindex 5"),
        PROOF.replace(b"\n", b"\r\n"),
        proof_of(HEAD[0]),
        proof_of(*HEAD[:2], b"not base64"),
        proof_of(*HEAD[:2], *HEAD[2:3] * 65),
        proof_of(HEAD[0], b"index 5 ", *HEAD[2:]),
        b"\xff" + PROOF,
    ],
)
def test_log_proofs_are_read_strictly(data: bytes) -> None:
    with pytest.raises(TrustError):
        LogProof.parse(data)
