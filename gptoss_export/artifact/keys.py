"""Ed25519 keys in files, for signatures of artifacts: PEM as OpenSSL writes it, or the formats of OpenSSH.

A key file is read once, and everything that is wrong with it is a UsageError. The package cryptography is imported
where a key is used, and nowhere else.
"""

from __future__ import annotations

import re
import shlex
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import UsageError
from ..regular_file import NotRegularError, read_start

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

# The public keys that a caller trusts: files, one key in each. None: signatures are not checked.
Trust: TypeAlias = Path | str | Sequence[Path | str] | None

LARGEST = 64 << 10  # bytes of a key file; one key has less than 500

_MAKE = "make a key with: openssl genpkey -algorithm ed25519 -out KEY"
_PUBLIC_OF = "write the public key with: openssl pkey -in KEY -pubout -out PUBLICKEY (OpenSSH: ssh-keygen -y -f KEY)"
_WITHOUT_PASSPHRASE = (
    "write a copy without it: openssl pkey -in KEY -out COPY (OpenSSH: copy it, then ssh-keygen -p -N '' -f COPY)"
)
_PEM_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_OPENSSH = "OPENSSH PRIVATE KEY"
_OPENSSH_PUBLIC = "OpenSSH public key"  # a line of text without a PEM label


@dataclass(frozen=True)
class PublicKey:
    """A public key, and the file that it was read from."""

    path: Path
    key: Ed25519PublicKey


def read_private_key(path: Path | str, option: str) -> Ed25519PrivateKey:
    """The private key in a file that only its owner may read. `option` is what errors call it, such as --sign-key.

    Raises UsageError.
    """
    path = Path(path)
    key = _read(path, option, private=True)
    allowed = stat.S_IMODE(path.stat().st_mode)
    if allowed & 0o077:
        fix = shlex.join(["chmod", "600", str(path)])
        raise UsageError(
            f"{option} {path}: found permissions {allowed:04o}, expected none for group and others: "
            f"whoever reads a private key can sign with it; run: {fix}"
        )
    return key


def read_trusted_keys(
    trust: Trust, verify_hashes: bool = True, option: str = "--trust"
) -> tuple[PublicKey, ...] | None:
    """The keys in the files that `trust` names, or None where it is None.

    verify_hashes  whether the caller compares the hashes of the artifact's files

    Raises UsageError for a file that holds no public key, for no key at all, and where hashes are not compared: a
    signature covers the manifest, and the other files by the hashes in it.
    """
    if trust is None:
        return None
    paths = [trust] if isinstance(trust, str | Path) else list(trust)
    if not paths:
        raise UsageError(f"{option}: found no key, expected one or more; leave it out (None) to check no signature")
    if not verify_hashes:
        raise UsageError(
            f"{option}: found --no-verify-hashes (verify_hashes=False) as well; a signature covers files by their "
            "hashes, so these must be compared: leave one of the two out"
        )
    return tuple(PublicKey(Path(path), _read(Path(path), option, private=False)) for path in paths)


def _read(path: Path, option: str, private: bool) -> Any:
    """The Ed25519 key in a file: a private one, or a public one."""
    subject, wanted = f"{option} {path}", "a private key" if private else "a public key"
    crypto = _cryptography(option)
    try:
        data = read_start(path, LARGEST + 1)
    except FileNotFoundError:
        raise UsageError(f"{subject}: not found, expected a file with {wanted}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise UsageError(f"{subject}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except NotRegularError as problem:
        raise UsageError(f"{subject}: {problem} with {wanted}") from None
    if len(data) > LARGEST:
        raise UsageError(f"{subject}: found more than {LARGEST >> 10} KiB, expected a file with {wanted}")
    kind = _kind(data, subject, wanted)
    if "PRIVATE KEY" in kind and not private:
        raise UsageError(f"{subject}: found a private key, expected a public key; {_PUBLIC_OF}")
    if "PUBLIC KEY" in kind.upper() and private:
        raise UsageError(f"{subject}: found a public key, expected the private key that belongs to it")
    try:
        key = _loader(kind, crypto)(data)
    except TypeError:  # what the package raises for a key with a passphrase and no password
        raise UsageError(
            f"{subject}: found a key with a passphrase, expected one without; {_WITHOUT_PASSPHRASE}"
        ) from None
    except (ValueError, crypto.exceptions.UnsupportedAlgorithm) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UsageError(
            f"{subject}: found {kind}, which cannot be read ({reason}); expected {wanted} of Ed25519"
        ) from None
    expected = crypto.ed25519.Ed25519PrivateKey if private else crypto.ed25519.Ed25519PublicKey
    if not isinstance(key, expected):
        found = re.sub(r"(Private|Public)Key$", "", type(key).__name__.lstrip("_"))
        raise UsageError(f"{subject}: found a key of {found}, expected one of Ed25519; {_MAKE}")
    return key


def _kind(data: bytes, subject: str, wanted: str) -> str:
    """The label of the one key in a file, such as `PRIVATE KEY`. Raises UsageError for none, several, or another."""
    labels = [label.decode("ascii") for label in _PEM_LABEL.findall(data)]
    lines = [line.split() for line in data.splitlines() if line.strip()]
    if not labels and lines and re.match(rb"(ssh|ecdsa|sk)-", lines[0][0]):
        if lines[0][0] != b"ssh-ed25519" and len(lines) == 1:
            found = lines[0][0][:60].decode("ascii", "backslashreplace")
            raise UsageError(f"{subject}: found a key of {found}, expected one of ssh-ed25519; {_MAKE}")
        labels = [_OPENSSH_PUBLIC] * len(lines)
    if len(labels) > 1:
        raise UsageError(f"{subject}: found {len(labels)} keys or other parts, expected one key; use a file for each")
    if not labels:
        raise UsageError(
            f"{subject}: found no key in PEM or in a format of OpenSSH, expected {wanted} of Ed25519; {_MAKE}"
        )
    if not labels[0].upper().endswith(("PRIVATE KEY", "PUBLIC KEY")):
        raise UsageError(f"{subject}: found {labels[0]}, expected {wanted} of Ed25519; {_MAKE}")
    return labels[0]


def _loader(kind: str, crypto: Any) -> Callable[[bytes], Any]:
    load = crypto.serialization
    if kind == _OPENSSH_PUBLIC:
        return lambda data: load.load_ssh_public_key(data.strip())
    if kind == _OPENSSH:
        return lambda data: load.load_ssh_private_key(data, None)
    if kind.endswith("PRIVATE KEY"):
        return lambda data: load.load_pem_private_key(data, None)
    return load.load_pem_public_key


def _cryptography(option: str) -> Any:
    """The modules of the package that keys need. Raises UsageError where it is not installed."""
    from types import SimpleNamespace

    try:
        from cryptography import exceptions
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise UsageError(
            f"{option}: package cryptography cannot be imported ({error}); run: pip install 'gptoss-export[sign]'"
        ) from None
    return SimpleNamespace(exceptions=exceptions, serialization=serialization, ed25519=ed25519)
