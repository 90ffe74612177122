"""Key files for tests of signatures, in the formats that OpenSSL and OpenSSH write."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


def private_bytes(key: Any, openssh: bool = False, passphrase: bytes | None = None) -> bytes:
    """A private key as a file holds it."""
    form = PrivateFormat.OpenSSH if openssh else PrivateFormat.PKCS8
    return key.private_bytes(
        Encoding.PEM, form, NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    )


def openssh_with_passphrase(key: Any) -> bytes:
    """A file whose header says that its private key, in OpenSSH's format, has a passphrase."""
    data = base64.b64decode(b"".join(private_bytes(key, openssh=True).splitlines()[1:-1]))
    header = data[: data.index(_string(b"none"))]
    public = _string(base64.b64decode(public_bytes(key, openssh=True).split()[1]))
    options = _string(bytes(16)) + (16).to_bytes(4, "big")
    parts = [_string(b"aes256-ctr"), _string(b"bcrypt"), _string(options), (1).to_bytes(4, "big"), public]
    data = header + b"".join(parts) + _string(bytes(144))
    label = b"OPENSSH PRIVATE KEY-----\n"
    return b"-----BEGIN " + label + base64.encodebytes(data) + b"-----END " + label


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def public_bytes(key: Any, openssh: bool = False) -> bytes:
    """The public key of a private key as a file holds it."""
    if openssh:
        return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" someone@somewhere\n"
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def write_private(path: Path, data: bytes, mode: int = 0o600) -> Path:
    """A file that only its owner can read."""
    path.write_bytes(data)
    path.chmod(mode)
    return path


def make_keys(folder: Path, name: str, openssh: bool = False) -> tuple[Path, Path]:
    """The files of a new private key and of its public key."""
    key = Ed25519PrivateKey.generate()
    public = folder / f"{name}.pub"
    public.write_bytes(public_bytes(key, openssh))
    return write_private(folder / name, private_bytes(key, openssh)), public
