from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trust_release
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from overproof.core.digest import canonical
from overproof.core.errors import TrustError
from overproof.trust.bundle import PAYLOAD_TYPE, Bundle, pae, sign
from overproof.trust.keys import PrivateKey

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors/trust/dsse.json").read_text(encoding="utf-8")
)
KEY = trust_release.signing_key()
BUNDLE = sign(b'{"a":1}', KEY)


@pytest.mark.parametrize("row", VECTORS["pae"])
def test_pae_vectors(row: dict[str, str]) -> None:
    assert pae(row["type"], bytes.fromhex(row["body"])).hex() == row["pae"]


def test_ecdsa_vector() -> None:
    """The nonce of RFC 6979: our signature equals the specification's, bit for bit."""
    row = VECTORS["ecdsa"]
    key = PrivateKey(ec.derive_private_key(int(row["d"]), ec.SECP256R1()))
    numbers = key.public.key.public_numbers()
    assert (numbers.x, numbers.y) == (int(row["x"]), int(row["y"]))
    r, s = decode_dss_signature(key.sign(pae(row["type"], row["body"].encode())))
    assert r.to_bytes(32, "big") + s.to_bytes(32, "big") == base64.b64decode(row["sig_r_s"])


def test_round_trip() -> None:
    data = BUNDLE.encode()
    assert Bundle.parse(data) == BUNDLE
    assert sign(b'{"a":1}', KEY).encode() == data
    assert not data.endswith(b"\n")
    BUNDLE.verify(KEY.public)


def test_another_key() -> None:
    other = trust_release.signing_key(b"other")
    with pytest.raises(TrustError, match="another key") as caught:
        BUNDLE.verify(other.public)
    assert BUNDLE.hint in caught.value.render()
    assert other.public.hint in caught.value.render()


def nest(*path: Any) -> Callable[[Any, Any], None]:
    def put(value: Any, new: Any) -> None:
        for part in path[:-1]:
            value = value[part]
        value[path[-1]] = new

    return put


SIGNATURE = ("dsseEnvelope", "signatures", 0)


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("mediaType",), "application/vnd.dev.sigstore.bundle.v0.2+json"),
        (("mediaType",), None),
        (("more",), 1),
        (("dsseEnvelope",), None),
        (("dsseEnvelope",), []),
        (("dsseEnvelope", "more"), 1),
        (("dsseEnvelope", "payloadType"), "application/json"),
        (("dsseEnvelope", "payload"), "eyJhIjoxfR=="),
        (("dsseEnvelope", "payload"), "eyJhIjoxfQ"),
        (("dsseEnvelope", "payload"), 5),
        (("dsseEnvelope", "signatures"), []),
        (("dsseEnvelope", "signatures"), {}),
        (("dsseEnvelope", "signatures"), [{"sig": "AA=="}, {"sig": "AA=="}]),
        ((*SIGNATURE, "sig"), "_-8="),
        ((*SIGNATURE, "sig"), None),
        ((*SIGNATURE, "keyid"), "0" * 64),
        ((*SIGNATURE, "more"), 1),
        (("verificationMaterial", "publicKey", "hint"), "0" * 63),
        (("verificationMaterial", "publicKey", "hint"), "0" * 64),
        (("verificationMaterial", "publicKey", "hint"), None),
        (("verificationMaterial", "publicKey", "rawBytes"), "AA=="),
        (("verificationMaterial", "certificate"), {}),
        (("verificationMaterial", "tlogEntries"), [{}]),
        (("verificationMaterial", "tlogEntries"), None),
    ],
)
def test_any_other_field_is_refused(path: tuple[Any, ...], new: Any) -> None:
    value = json.loads(BUNDLE.encode())
    nest(*path)(value, new)
    with pytest.raises(TrustError):
        Bundle.parse(canonical(value))


@pytest.mark.parametrize("data", [b"null", b"[]", b'"x"', b"7", b"{}", b""])
def test_other_json(data: bytes) -> None:
    with pytest.raises(TrustError):
        Bundle.parse(data)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_the_signature(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_bytes(KEY.public.pem)
    (tmp_path / "sig").write_bytes(BUNDLE.signature)
    (tmp_path / "pae").write_bytes(pae(PAYLOAD_TYPE, BUNDLE.payload))
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", "sig", "pae"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Verified OK"


def test_securesystemslib_accepts_the_envelope() -> None:
    dsse = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    envelope = dsse.Envelope.from_dict(json.loads(BUNDLE.encode())["dsseEnvelope"])
    key = signer.SSlibKey(
        KEY.public.hint,
        "ecdsa",
        "ecdsa-sha2-nistp256",
        {"public": KEY.public.pem.decode()},
    )
    assert envelope.pae() == pae(PAYLOAD_TYPE, BUNDLE.payload)
    assert envelope.verify([key], 1)


def test_sigstore_models_reads_the_bundle() -> None:
    models = pytest.importorskip("sigstore_models.bundle.v1")
    read = models.Bundle.from_json(BUNDLE.encode())
    assert read.dsse_envelope.payload == BUNDLE.payload
    assert read.verification_material.public_key.hint == KEY.public.hint
