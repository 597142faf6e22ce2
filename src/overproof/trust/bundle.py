"""DSSE envelopes in Sigstore bundles v0.3, one signature each, written in one way only.

Sources: DSSE 1.0.2 `protocol.md`; Sigstore `protobuf-specs` bundle v0.3 (`publicKey` as
verification material, exactly one DSSE signature); the key hint as in OpenSSF model-signing 1.1.
DSSE lets a verifier accept two base64 alphabets and any JSON spelling. A release is stricter, so
that no byte of it can change without being noticed: the file is the canonical JSON of its content.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from overproof.core.digest import canonical
from overproof.core.errors import TrustError
from overproof.trust.keys import PrivateKey, PublicKey
from overproof.trust.strict import SHA256_HEX, parse_canonical, shown, unbase64

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_BUNDLE_BYTES = 64 << 20  # a statement of 100,000 files is about 15 MB


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE pre-authentication encoding: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Bundle:
    """A signed statement as it lies in a file.

    Attributes:
        payload: the statement's bytes.
        signature: ECDSA P-256 SHA-256 over `pae`, DER.
        hint: SHA-256 of the signer's PEM, 64 hex digits; unauthenticated, so only compared.
    """

    payload: bytes
    signature: bytes
    hint: str

    def encode(self) -> bytes:
        """The file: RFC 8785, no final newline."""
        return canonical(self._as_json())

    def _as_json(self) -> dict[str, Any]:
        # `tlogEntries` is empty but present and `keyid` repeats the hint: sigstore-models and
        # securesystemslib read no bundle without them.
        return {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": self.hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [
                    {"keyid": self.hint, "sig": base64.b64encode(self.signature).decode()}
                ],
            },
        }

    @classmethod
    def parse(cls, data: bytes) -> Bundle:
        """Read a file; it must be exactly what `encode` writes.

        Raises:
            TrustError: anything is missing, added or spelt otherwise.
        """
        if len(data) > MAX_BUNDLE_BYTES:
            raise TrustError(f"a bundle has at most {MAX_BUNDLE_BYTES} bytes")
        value = parse_canonical(data)
        try:
            envelope = value["dsseEnvelope"]
            hint = value["verificationMaterial"]["publicKey"]["hint"]
            payload, signature = envelope["payload"], envelope["signatures"][0]["sig"]
        except (KeyError, TypeError, IndexError):
            raise TrustError("not a Sigstore bundle with a DSSE envelope and a key hint") from None
        if not isinstance(hint, str) or not SHA256_HEX.fullmatch(hint):
            raise TrustError("the key hint is not 64 hex digits", details=[f"got {shown(hint)!r}"])
        bundle = cls(unbase64(payload, "the payload"), unbase64(signature, "the signature"), hint)
        if bundle._as_json() != value:
            raise TrustError(
                "a bundle field is unknown or of another version",
                details=[
                    f"got media type {shown(value.get('mediaType'))!r}, payload type "
                    f"{shown(envelope.get('payloadType'))!r}",
                    f"wanted {MEDIA_TYPE!r}, {PAYLOAD_TYPE!r}, one signature, no other field",
                ],
            )
        return bundle

    def verify(self, signer: PublicKey) -> None:
        """Check hint and signature.

        Raises:
            TrustError: signed by another key, or changed since.
        """
        if self.hint != signer.hint:
            raise TrustError(
                "signed by another key",
                details=[f"got key {self.hint}", f"wanted {signer.hint}"],
                hint="is --signer the key of whoever made this release?",
            )
        signer.verify(pae(PAYLOAD_TYPE, self.payload), self.signature)


def sign(payload: bytes, signer: PrivateKey) -> Bundle:
    """Sign a statement's bytes; equal bytes and key give an equal bundle."""
    return Bundle(payload, signer.sign(pae(PAYLOAD_TYPE, payload)), signer.public.hint)
