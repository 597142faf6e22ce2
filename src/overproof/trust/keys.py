"""Make or list signing keys: ECDSA P-256, `NAME.key` (private, mode 0600) and `NAME.pub`."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from overproof.core.disk import disk_errors
from overproof.core.errors import TrustError, UsageError

DEFAULT_NAME = "default"
MAX_KEY_BYTES = 10_000  # a PEM key is under 300 bytes; larger files are something else
SCALAR_BYTES = 32  # private scalar of P-256 (FIPS 186-5)
LOG_KEY_INFO = b"overproof.dev/log-key/ed25519/v1"  # HKDF info, RFC 5869 section 3.2
OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class PublicKey:
    """A signer as others know it."""

    key: ec.EllipticCurvePublicKey

    @property
    def pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM, the bytes of `NAME.pub`."""
        return self.key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def hint(self) -> str:
        """SHA-256 of `pem` in hex, as `sha256sum NAME.pub` prints it.

        The OpenSSF reference (model-signing 1.1, `sign_ec_key.py`) writes the same hint.
        """
        return hashlib.sha256(self.pem).hexdigest()

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check an ECDSA P-256 SHA-256 signature in DER.

        Raises:
            TrustError: it is not this key's signature of this message.
        """
        try:
            self.key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise TrustError(
                "the signature does not verify", details=[f"key {self.hint}"]
            ) from None

    @classmethod
    def from_pem(cls, data: bytes, source: str) -> PublicKey:
        """Read a SubjectPublicKeyInfo in PEM; `source` names it in messages.

        Raises:
            UsageError: not a P-256 public key.
        """
        if b"PRIVATE KEY" in data:
            raise UsageError(
                f"{source} is a private key",
                hint="give the .pub file; the .key file stays with the signer",
            )
        try:
            key = serialization.load_pem_public_key(data)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{source} is not a public key in PEM", details=[str(error)]) from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise UsageError(f"{source} is not an ECDSA P-256 key")
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """Read `NAME.pub`.

        Raises:
            UsageError: no such file, or not a P-256 public key.
        """
        return cls.from_pem(_read(path), str(path))


@dataclass(frozen=True, repr=False)
class PrivateKey:
    """A signer. Its secret also yields the key of its logs, so that one file is kept."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new random key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public(self) -> PublicKey:
        """The half to give away."""
        return PublicKey(self.key.public_key())

    @property
    def pem(self) -> bytes:
        """PKCS #8 in PEM, not encrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 SHA-256 in DER with the nonce of RFC 6979: equal input, equal bytes."""
        return self.key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))

    def log_key(self) -> Ed25519PrivateKey:
        """The Ed25519 key of this signer's logs: HKDF-SHA256 of the private scalar."""
        scalar = self.key.private_numbers().private_value.to_bytes(SCALAR_BYTES, "big")
        seed = HKDF(hashes.SHA256(), length=32, salt=None, info=LOG_KEY_INFO).derive(scalar)
        return Ed25519PrivateKey.from_private_bytes(seed)

    @classmethod
    def load(cls, path: Path) -> PrivateKey:
        """Read `NAME.key`.

        Raises:
            UsageError: no such file, open to others, encrypted, or not a P-256 private key.
        """
        data = _read(path, private=True)
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError(
                f"{path} is not a private key in PEM",
                details=[str(error)],
                hint="if it was never used, remove it and make a new one: overproof keys new",
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise UsageError(f"{path} is not an ECDSA P-256 key")
        return cls(key)


@dataclass(frozen=True)
class Config:
    """What to do with keys: make one, or show those in a folder (`name` None: all)."""

    action: Literal["new", "show"]
    name: str | None = None
    dir: Path | None = None


@dataclass(frozen=True)
class KeyInfo:
    """One key pair in a folder.

    Attributes:
        state: `private, mode 600`, `public only`, or what is wrong.
    """

    name: str
    public: Path
    hint: str
    state: str


@dataclass(frozen=True)
class KeyList:
    """The key pairs of a folder; `made` names the new one."""

    folder: Path
    keys: tuple[KeyInfo, ...]
    made: str | None = None


def default_folder() -> Path:
    """$OVERPROOF_CONFIG_DIR, else $XDG_CONFIG_HOME/overproof, else ~/.config/overproof."""
    if own := os.environ.get("OVERPROOF_CONFIG_DIR"):
        return Path(own)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "overproof"


def create(folder: Path, name: str = DEFAULT_NAME) -> PrivateKey:
    """Make `NAME.key` and `NAME.pub`; nothing is ever overwritten.

    Raises:
        UsageError: a bad name, or one of the files exists.
        StageError: the folder cannot be written.
    """
    private, public = _paths(folder, name)
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise UsageError(
                f"{path} exists, and a key is never overwritten",
                hint="give the new key another name: overproof keys new NAME",
            )
    key = PrivateKey.generate()
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_new(private, key.pem, 0o600)
            _write_new(public, key.public.pem, 0o644)
        except FileExistsError as error:
            raise UsageError(f"{error.filename} was made meanwhile by another run") from error
    return key


def ensure(folder: Path, name: str = DEFAULT_NAME) -> PrivateKey:
    """The key of that name, made if there is none.

    Raises:
        UsageError: the file that is there cannot be used.
        StageError: the folder cannot be written.
    """
    private, public = _paths(folder, name)
    if not private.exists():
        return create(folder, name)
    key = PrivateKey.load(private)
    if not public.exists():  # a run was killed between the two
        with disk_errors(folder):
            _write_new(public, key.public.pem, 0o644)
    return key


def run(config: Config) -> KeyList:
    """Make a key or list keys.

    Raises:
        UsageError: a bad name, the key exists (new), or there is none (show).
        StageError: the folder cannot be written.
    """
    folder = config.dir or default_folder()
    if config.action == "new":
        name = config.name or DEFAULT_NAME
        create(folder, name)
        return KeyList(folder, (_info(folder / f"{name}.pub"),), made=name)
    one = [_paths(folder, config.name)[1]] if config.name else None
    public = one or sorted(folder.glob("*.pub"))
    if not public or not public[0].is_file():
        raise UsageError(
            f"no key {config.name!r} in {folder}" if config.name else f"no keys in {folder}",
            hint="overproof keys new makes one; --dir names another folder",
        )
    return KeyList(folder, tuple(_info(path) for path in public))


def render(result: KeyList) -> str:
    """Lines for the terminal."""
    lines = []
    for key in result.keys:
        lines += [key.name, f"  public  {key.public}", f"  sha256  {key.hint}", f"  {key.state}"]
    if result.made:
        lines += [
            "",
            f"Keep {result.folder / result.made}.key to yourself. Whoever verifies needs the .pub",
            "file, or its sha256 from a place that they trust.",
        ]
    return "\n".join(lines)


def _info(public: Path) -> KeyInfo:
    private, state = public.with_suffix(".key"), "public only"
    if private.is_file():
        mode = stat.S_IMODE(private.stat().st_mode)
        state = f"private key beside it, mode {mode:o}"
        if mode & OTHERS:
            state = f"private key open to others (mode {mode:o}): chmod 600 {private}"
    return KeyInfo(public.stem, public, PublicKey.load(public).hint, state)


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a key",
            hint="use letters, digits, dot, hyphen and underscore, at most 64",
        )
    return folder / f"{name}.key", folder / f"{name}.pub"


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """All of it or nothing, and nothing where a file or a link already stands."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError as error:
        raise FileExistsError(error.errno, error.strerror, str(path)) from error
    finally:
        Path(temporary).unlink()


def _read(path: Path, *, private: bool = False) -> bytes:
    try:
        with path.open("rb") as stream:
            # The mode of the open file, not of the name, which may be exchanged meanwhile.
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            data = stream.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read the key {path}",
            details=[error.strerror or str(error)],
            hint="overproof keys show lists the keys that exist",
        ) from error
    if private and mode & OTHERS:
        raise UsageError(
            f"private key {path} can be read by others",
            details=[f"got mode {mode:o}, wanted 600"],
            hint=f"chmod 600 {path}; if others have used the machine, make a new key",
        )
    if len(data) > MAX_KEY_BYTES:
        raise UsageError(f"{path} is not a key: over {MAX_KEY_BYTES} bytes")
    return data
