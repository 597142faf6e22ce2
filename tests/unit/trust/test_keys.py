from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
import trust_release
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from overproof.core.errors import StageError, TrustError, UsageError
from overproof.trust import keys
from overproof.trust.keys import Config, PrivateKey, PublicKey


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_key(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        result = keys.run(Config("new", "demo", tmp_path / "keys"))
    finally:
        os.umask(old)
    private, public = tmp_path / "keys/demo.key", tmp_path / "keys/demo.pub"
    assert mode(private) == 0o600
    assert mode(private.parent) == 0o700
    assert private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert public.read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----")
    assert PrivateKey.load(private).public.pem == PublicKey.load(public).pem
    assert result.keys[0].hint == hashlib.sha256(public.read_bytes()).hexdigest()
    assert str(public) in keys.render(result)
    assert "to yourself" in keys.render(result)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    keys.create(tmp_path, "a")
    before = (tmp_path / "a.key").read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        keys.create(tmp_path, "a")
    (tmp_path / "b.pub").write_text("mine")
    with pytest.raises(UsageError, match="never overwritten"):
        keys.create(tmp_path, "b")
    (tmp_path / "c.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="never overwritten"):
        keys.create(tmp_path, "c")
    assert (tmp_path / "a.key").read_bytes() == before
    assert not (tmp_path / "b.key").exists()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o620, 0o644])
def test_a_key_open_to_others_is_refused(tmp_path: Path, bits: int) -> None:
    keys.create(tmp_path, "a")
    (tmp_path / "a.key").chmod(bits)
    with pytest.raises(UsageError) as caught:
        PrivateKey.load(tmp_path / "a.key")
    assert "chmod 600" in caught.value.render()
    assert f"{bits:o}" in caught.value.render()
    assert "chmod 600" in keys.render(keys.run(Config("show", "a", tmp_path)))


def test_show(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no keys"):
        keys.run(Config("show", None, tmp_path))
    keys.create(tmp_path, "b")
    keys.create(tmp_path, "a")
    (tmp_path / "b.key").unlink()
    result = keys.run(Config("show", None, tmp_path))
    assert [(key.name, key.state) for key in result.keys] == [
        ("a", "private key beside it, mode 600"),
        ("b", "public only"),
    ]
    with pytest.raises(UsageError, match="no key 'z'"):
        keys.run(Config("show", "z", tmp_path))


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OVERPROOF_CONFIG_DIR", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert keys.default_folder() == tmp_path / ".config/overproof"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert keys.default_folder() == tmp_path / "xdg/overproof"
    monkeypatch.setenv("OVERPROOF_CONFIG_DIR", str(tmp_path / "own"))
    assert keys.run(Config("new")).folder == tmp_path / "own"
    assert (tmp_path / "own/default.key").is_file()


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b", "a" * 65, "é", "a\n"])
def test_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a key"):
        keys.create(tmp_path, name)


def test_ensure_makes_once(tmp_path: Path) -> None:
    first = keys.ensure(tmp_path, "demo")
    assert keys.ensure(tmp_path, "demo").pem == first.pem


def test_ensure_writes_the_public_half_that_a_killed_run_left_out(tmp_path: Path) -> None:
    first = keys.ensure(tmp_path, "demo")
    (tmp_path / "demo.pub").unlink()
    keys.ensure(tmp_path, "demo")
    assert keys.PublicKey.load(tmp_path / "demo.pub").hint == first.public.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.key", "demo.pub"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="cannot write"):
        keys.create(tmp_path / "file" / "keys", "a")


def pem_of(key: object) -> bytes:
    return key.private_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a private key"),
        (b"\x00" * 20_000, "not a key"),
        (pem_of(ec.generate_private_key(ec.SECP384R1())), "not an ECDSA P-256 key"),
        (pem_of(ed25519.Ed25519PrivateKey.generate()), "not an ECDSA P-256 key"),
        (
            ec.generate_private_key(ec.SECP256R1()).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            ),
            "not a private key",
        ),
    ],
)
def test_other_private_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=message):
        PrivateKey.load(path)


def test_other_public_files(tmp_path: Path) -> None:
    keys.create(tmp_path, "a")
    with pytest.raises(UsageError, match="is a private key"):
        PublicKey.load(tmp_path / "a.key")
    with pytest.raises(UsageError, match="cannot read the key"):
        PublicKey.load(tmp_path / "none.pub")
    with pytest.raises(UsageError, match="cannot read the key"):
        PublicKey.load(tmp_path)
    (tmp_path / "b.pub").write_text("ssh-ed25519 AAAA")
    with pytest.raises(UsageError, match="not a public key"):
        PublicKey.load(tmp_path / "b.pub")
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    (tmp_path / "c.pub").write_bytes(
        other.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    with pytest.raises(UsageError, match="P-256"):
        PublicKey.load(tmp_path / "c.pub")


def test_signatures_are_deterministic() -> None:
    key = trust_release.signing_key()
    assert key.sign(b"message") == key.sign(b"message")
    key.public.verify(b"message", key.sign(b"message"))
    for message, signature in ((b"Message", key.sign(b"message")), (b"message", b""), (b"", b"0")):
        with pytest.raises(TrustError, match="does not verify"):
            key.public.verify(message, signature)


def test_the_log_key_follows_from_the_secret() -> None:
    """Golden value: another derivation would orphan the logs of keys in use."""
    key = trust_release.signing_key()
    assert key.log_key().public_key().public_bytes_raw().hex() == (
        "a0bd1f01dd2327d2e395688a029c287f0bc59ae604087f92227c7d453027aa20"
    )
    assert key.log_key().private_bytes_raw() != PrivateKey.generate().log_key().private_bytes_raw()


def test_a_key_does_not_print_itself() -> None:
    assert "PrivateKey object" in repr(PrivateKey.generate())
