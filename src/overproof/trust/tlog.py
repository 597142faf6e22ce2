"""The transparency log's formats: signed notes, checkpoints and proofs of inclusion.

Sources: C2SP signed-note v1.0.0, tlog-checkpoint v1.0.0, tlog-proof@v1. A log here belongs to one
release and is written at once; tiles, witnesses and servers are not part of this module.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from overproof.core.errors import TrustError, UsageError
from overproof.trust.rfc6962 import HASH_BYTES, MAX_PATH, Tree, check_inclusion, leaf_hash
from overproof.trust.strict import shown, unbase64, whole_number

ED25519 = b"\x01"  # signature type, signed-note "Signature types"
KEY_ID_BYTES = 4
ED25519_KEY_BYTES = 32
MAX_SIGNATURES = 100  # signed-note asks for at least 16; Go's sumdb/note accepts 100
MAX_NOTE_BYTES = 1 << 20
MAX_SIZE = 2**63 - 1  # leaves; the largest that Go's int64 implementations read
PROOF_LINE = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True)
class NoteKey:
    """A public key of signed notes: a name, and an Ed25519 key of 32 bytes."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """SHA-256(name || newline || type || key), first four bytes."""
        return hashlib.sha256(self.name.encode() + b"\n" + ED25519 + self.public).digest()[
            :KEY_ID_BYTES
        ]

    @property
    def vkey(self) -> str:
        """`NAME+ID+KEY`, as Go's sumdb/note writes it and C2SP tools read it."""
        encoded = base64.b64encode(ED25519 + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    @classmethod
    def parse(cls, vkey: str) -> NoteKey:
        """Read a vkey.

        Raises:
            TrustError: malformed, another signature type, or an ID that does not fit the key.
        """
        name, _, rest = vkey.partition("+")
        _, _, encoded = rest.partition("+")
        data = unbase64(encoded, "the log's key")
        if len(data) != 1 + ED25519_KEY_BYTES or not data.startswith(ED25519):
            raise TrustError("the log's key is not Ed25519", details=[f"got {shown(vkey)!r}"])
        key = cls(_check_key_name(name), data[1:])
        if key.vkey != vkey:
            raise TrustError(
                "the log's key ID does not fit its key",
                details=[f"got {shown(vkey)!r}, wanted {key.vkey!r}"],
            )
        return key


@dataclass(frozen=True)
class NoteSignature:
    """One signature line: who, which key, the bytes."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True)
class Note:
    """A signed text; `text` ends in a newline and must be ignored until `verify` passes."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        """Text, blank line, signature lines."""
        lines = [
            f"— {item.name} {base64.b64encode(item.key_id + item.signature).decode()}\n"
            for item in self.signatures
        ]
        return f"{self.text}\n{''.join(lines)}".encode()

    @classmethod
    def parse(cls, data: bytes) -> Note:
        """Read a note; it must be exactly what `encode` writes.

        Raises:
            TrustError: not UTF-8, control characters, no text or signature, malformed lines.
        """
        if len(data) > MAX_NOTE_BYTES:
            raise TrustError(f"a note has at most {MAX_NOTE_BYTES} bytes")
        try:
            whole = data.decode()
        except UnicodeDecodeError:
            raise TrustError("a note is UTF-8") from None
        if any(sign < " " and sign != "\n" for sign in whole):
            raise TrustError("a note has no control characters")
        # The last empty line divides text and signatures.
        text, divider, tail = whole.rpartition("\n\n")
        lines = tail.split("\n")
        if not divider or lines[-1] != "" or not 1 <= len(lines) - 1 <= MAX_SIGNATURES:
            raise TrustError(
                "a note is a text, a blank line and signature lines",
                details=[f"wanted 1 to {MAX_SIGNATURES} signatures, the last with a newline"],
            )
        note = cls(text + "\n", tuple(_signature(line) for line in lines[:-1]))
        if note.encode() != data:
            raise TrustError("a note is not written in its one form")
        return note

    def verify(self, key: NoteKey) -> None:
        """Check that this key signed the text; signatures of unknown keys are ignored.

        Raises:
            TrustError: no signature of the key, or one that does not verify.
        """
        own = [s for s in self.signatures if (s.name, s.key_id) == (key.name, key.key_id)]
        if not own:
            raise TrustError("not signed by the log's key", details=[f"wanted {key.vkey}"])
        public = Ed25519PublicKey.from_public_bytes(key.public)
        for item in own:
            try:
                public.verify(item.signature, self.text.encode())
            except InvalidSignature:
                raise TrustError(
                    "the log's signature does not verify", details=[f"key {key.vkey}"]
                ) from None


def _signature(line: str) -> NoteSignature:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    if dash != "—":
        raise TrustError(
            "a signature line starts with an em dash", details=[f"got {shown(line)!r}"]
        )
    data = unbase64(encoded, "a note signature")
    if len(data) <= KEY_ID_BYTES:
        raise TrustError("a note signature is too short", details=[f"got {shown(line)!r}"])
    return NoteSignature(_check_key_name(name), data[:KEY_ID_BYTES], data[KEY_ID_BYTES:])


def _check_key_name(name: str) -> str:
    # signed-note: non-empty, no Unicode spaces, no plus.
    if not name or any(s == "+" or s.isspace() or unicodedata.category(s) == "Cc" for s in name):
        raise TrustError("not a key name", details=[f"got {shown(name)!r}"])
    return name


def sign_note(text: str, name: str, key: Ed25519PrivateKey) -> Note:
    """Sign a text with one key.

    Raises:
        UsageError: the text does not end in a newline.
    """
    if not text.endswith("\n"):
        raise UsageError("the text of a note ends in a newline")
    known = NoteKey(_check_key_name(name), key.public_key().public_bytes_raw())
    return Note(text, (NoteSignature(name, known.key_id, key.sign(text.encode())),))


@dataclass(frozen=True)
class Checkpoint:
    """A log's state: its name, number of entries, RFC 6962 root."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The note's text, without extension lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note's text.

        Raises:
            TrustError: other than three lines (extension lines are refused), or malformed.
        """
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] or not lines[0]:
            raise TrustError("a checkpoint is three lines: origin, size, root")
        root = unbase64(lines[2], "the root")
        if len(root) != HASH_BYTES:
            raise TrustError(f"a root has {HASH_BYTES} bytes", details=[f"got {len(root)}"])
        return cls(lines[0], whole_number(lines[1], "the log's size", limit=MAX_SIZE), root)

    @classmethod
    def open(cls, data: bytes, key: NoteKey) -> Checkpoint:
        """Read a checkpoint signed by the log and nobody else.

        A further signature line would be a byte that nothing here vouches for, so it is refused
        until witnesses can be pinned.

        Raises:
            TrustError: malformed, not signed by `key`, or of another origin than the key's name.
        """
        note = Note.parse(data)
        if len(note.signatures) != 1:
            raise TrustError(
                "a checkpoint carries the log's signature only",
                details=[f"got {len(note.signatures)} signatures"],
            )
        note.verify(key)
        found = cls.parse(note.text)
        if found.origin != key.name:
            raise TrustError(
                "a checkpoint of another log",
                details=[f"got {shown(found.origin)!r}, wanted {shown(key.name)!r}"],
            )
        return found


@dataclass(frozen=True)
class LogProof:
    """A `.tlog-proof`: an entry's index and path, and the checkpoint verbatim."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes

    def encode(self) -> bytes:
        """The file."""
        lines = [PROOF_LINE, f"index {self.index}"]
        lines += [base64.b64encode(item).decode() for item in self.path]
        return "\n".join([*lines, "", ""]).encode() + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> LogProof:
        """Read a file; it must be exactly what `encode` writes.

        `extra` lines are refused: tlog-proof does not authenticate them.

        Raises:
            TrustError: malformed.
        """
        head, divider, checkpoint = data.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError:
            raise TrustError("the head of a log proof is ASCII") from None
        if not divider or lines[0] != PROOF_LINE or len(lines) < 2:
            raise TrustError("not a log proof", details=[f"wanted the first line {PROOF_LINE!r}"])
        word, _, number = lines[1].partition(" ")
        if word != "index" or len(lines) - 2 > MAX_PATH:
            raise TrustError(
                "a log proof is an index and a path", details=[f"got {shown(lines[1])!r}"]
            )
        index = whole_number(number, "the index", limit=MAX_SIZE)
        proof = cls(index, tuple(unbase64(line, "a path hash") for line in lines[2:]), checkpoint)
        if proof.encode() != data:
            raise TrustError("a log proof is not written in its one form")
        return proof

    def check(self, entry: bytes, checkpoint: Checkpoint) -> None:
        """Check that `entry` is in the log of that (already verified) checkpoint.

        Raises:
            TrustError: it is not.
        """
        check_inclusion(
            leaf_hash(entry), self.index, self.path, size=checkpoint.size, root=checkpoint.root
        )


def write_log(
    entries: Sequence[bytes], origin: str, key: Ed25519PrivateKey
) -> tuple[bytes, list[LogProof]]:
    """Log all entries at once: the signed checkpoint, and a proof for each."""
    tree = Tree(leaf_hash(entry) for entry in entries)
    note = sign_note(Checkpoint(origin, tree.size, tree.root).text(), origin, key).encode()
    return note, [LogProof(i, tree.inclusion(i), note) for i in range(tree.size)]
