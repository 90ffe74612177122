"""Key files: one clear error for each that cannot be used."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import SSHCertificateBuilder, SSHCertificateType
from hypothesis import given
from hypothesis import strategies as st
from signing_keys import make_keys, openssh_with_passphrase, private_bytes, public_bytes, write_private

from gptoss_export.artifact import keys
from gptoss_export.errors import UsageError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEM, SSH = private_bytes(KEY), private_bytes(KEY, openssh=True)
PUBLIC_PEM, PUBLIC_SSH = public_bytes(KEY), public_bytes(KEY, openssh=True)
EC = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
CERTIFICATE = (
    SSHCertificateBuilder()
    .public_key(KEY.public_key())
    .serial(1)
    .type(SSHCertificateType.USER)
    .key_id(b"k")
    .valid_principals([b"p"])
    .valid_after(0)
    .valid_before(1)
    .sign(KEY)
    .public_bytes()
)


def trusted(path: Path) -> bytes:
    found = keys.read_trusted_keys(path)
    assert found is not None
    return found[0].key.public_bytes_raw()


@pytest.mark.parametrize("data", [PEM, SSH, b"a comment\n" + PEM, PEM.replace(b"\n", b"\r\n")], ids=list("abcd"))
def test_private_keys(tmp_path: Path, data: bytes) -> None:
    key = keys.read_private_key(write_private(tmp_path / "key", data), "--key")
    assert key.private_bytes_raw() == bytes(range(32))


@pytest.mark.parametrize(
    "data", [PUBLIC_PEM, PUBLIC_SSH, b"\n" + PUBLIC_SSH.strip(), PUBLIC_PEM.replace(b"\n", b"\r\n")], ids=list("abcd")
)
def test_public_keys(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "key").write_bytes(data)
    assert trusted(tmp_path / "key") == KEY.public_key().public_bytes_raw()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found no key in PEM or in a format of OpenSSH, expected a private key of Ed25519; make a key with"),
        (b"\0" * 100, "found no key in PEM"),
        (PUBLIC_PEM, "found a public key, expected the private key that belongs to it"),
        (PUBLIC_SSH, "found a public key, expected the private key"),
        (private_bytes(KEY, passphrase=b"secret"), "found a key with a passphrase, expected one without; write a copy"),
        (openssh_with_passphrase(KEY), "found a key with a passphrase"),
        (private_bytes(RSA), "found a key of RSA, expected one of Ed25519; make a key with"),
        (private_bytes(EC, openssh=True), "found a key of EC, expected one of Ed25519"),
        (PEM + PEM, "found 2 keys or other parts, expected one key"),
        (PEM + PUBLIC_PEM, "found 2 keys or other parts"),
        (PEM[:60], "found PRIVATE KEY, which cannot be read"),
        (PEM.replace(b"PRIVATE KEY", b"CERTIFICATE"), "found CERTIFICATE, expected a private key"),
        (SSH[:150] + b"\n-----END OPENSSH PRIVATE KEY-----\n", "found OPENSSH PRIVATE KEY, which cannot be read"),
        (bytes(keys.LARGEST + 1), "found more than 64 KiB, expected a file with a private key"),
    ],
    ids=map(str, itertools.count()),
)
def test_wrong_private_keys(tmp_path: Path, data: bytes, message: str) -> None:
    path = write_private(tmp_path / "key", data)
    with pytest.raises(UsageError, match=f"^--sign-key {path}: {message}") as caught:
        keys.read_private_key(path, "--sign-key")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found no key in PEM or in a format of OpenSSH, expected a public key of Ed25519"),
        (PEM, "found a private key, expected a public key; write the public key with: openssl pkey"),
        (SSH, "found a private key, expected a public key"),
        (private_bytes(KEY, passphrase=b"secret"), "found a private key, expected a public key"),
        (public_bytes(RSA), "found a key of RSA, expected one of Ed25519"),
        (public_bytes(EC, openssh=True), "found a key of ecdsa-sha2-nistp256, expected one of ssh-ed25519"),
        (CERTIFICATE, "found a key of ssh-ed25519-cert-v01@openssh.com, expected one of ssh-ed25519"),
        (PUBLIC_SSH + PUBLIC_SSH, "found 2 keys or other parts, expected one key; use a file for each"),
        (PUBLIC_PEM + PUBLIC_PEM, "found 2 keys or other parts"),
        (PUBLIC_SSH + CERTIFICATE, "found 2 keys"),
        (b"ssh-ed25519", "found OpenSSH public key, which cannot be read"),
        (b"ssh-ed25519 AAAA", "found OpenSSH public key, which cannot be read"),
        (PUBLIC_PEM[:70], "found PUBLIC KEY, which cannot be read"),
    ],
    ids=map(str, itertools.count()),
)
def test_wrong_public_keys(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=f"^--trust {path}: {message}") as caught:
        keys.read_trusted_keys([path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["--trust", "--key"])
def test_what_is_no_file(tmp_path: Path, option: str) -> None:
    def read(path: Path) -> None:
        if option == "--trust":
            keys.read_trusted_keys(path)
        else:
            keys.read_private_key(path, option)

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path, message in {
        tmp_path: "found a folder, expected a regular file with a",
        tmp_path / "fifo": "found a FIFO, expected a regular file with a",
        Path("/dev/null"): "found a device, expected a regular file with a",
        tmp_path / "none": "not found, expected a file with a",
        tmp_path / "loop": "cannot be read",
        tmp_path / "none" / "\0": "cannot be read",
    }.items():
        with pytest.raises(UsageError, match=f"^{option} .*: {message}"):
            read(path)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(keys, "read_start", denied)
    with pytest.raises(UsageError, match=r"--key k: cannot be read \(Permission denied\)"):
        keys.read_private_key("k", "--key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_private_key_that_others_can_read(tmp_path: Path, mode: int) -> None:
    path = write_private(tmp_path / "a key", PEM, mode)
    with pytest.raises(UsageError, match=f"found permissions {mode:04o}, .*run: chmod 600 '{path}'"):
        keys.read_private_key(path, "--key")
    path.chmod(0o400)
    keys.read_private_key(path, "--key")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = make_keys(tmp_path, "key")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    expected = r"package cryptography cannot be imported .*; run: pip install 'gptoss-export\[sign\]'"
    with pytest.raises(UsageError, match=f"^--trust: {expected}"):
        keys.read_trusted_keys(public)
    with pytest.raises(UsageError, match=f"^--key: {expected}"):
        keys.read_private_key(private, "--key")


VALID = [PEM, SSH, PUBLIC_PEM, PUBLIC_SSH, CERTIFICATE]


@given(data=st.sampled_from(VALID), start=st.integers(0, 400), cut=st.integers(0, 8), new=st.binary(max_size=8))
def test_damaged_keys_are_errors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: int, cut: int, new: bytes
) -> None:
    path = write_private(tmp_path_factory.getbasetemp() / "damaged", data[:start] + new + data[start + cut :])
    for read in (lambda: keys.read_trusted_keys(path), lambda: keys.read_private_key(path, "--key")):
        try:
            read()
        except UsageError as error:
            assert "\n" not in str(error)
