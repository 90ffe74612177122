"""The signature of an artifact: Ed25519 over the bytes of manifest.json, kept as 64 bytes in manifest.json.sig.

The manifest holds the sha256 of every other file, so the signature covers these too, without reading them again.
docs/security.md says what a signature protects. `openssl pkeyutl -verify -rawin` can check one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtifactError, UsageError
from ..regular_file import NotRegularError, read_start
from .keys import PublicKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE = "manifest.json.sig"
_LENGTH = 64  # bytes of a signature of Ed25519


def has_signature(folder: Path) -> bool:
    """Whether an artifact has a signature, right or wrong."""
    return os.path.lexists(folder / SIGNATURE)


def signature_check(folder: Path, keys: Sequence[PublicKey] | None) -> Callable[[bytes], object] | None:
    """What `load_manifest` calls with the bytes of the manifest, where one of `keys` must have signed them.

    None where `keys` is None: then no signature is asked for.
    """
    return None if keys is None else partial(check_signature, folder, keys=keys)


def check_signature(folder: Path, manifest: bytes, keys: Sequence[PublicKey]) -> PublicKey:
    """The first of `keys` that signed these bytes of `folder`/manifest.json.

    Raises ArtifactError where there is no signature, or none by one of `keys`.
    """
    path, names = folder / SIGNATURE, " or ".join(str(key.path) for key in keys)
    try:
        signature = read_start(path, _LENGTH + 1)
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder}: is not signed ({SIGNATURE} not found), expected a signature by {names}; "
            "get a signed artifact, or sign your own with gptoss-export sign"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error})") from None
    except NotRegularError as problem:
        raise ArtifactError(f"{path}: {problem} with a signature") from None
    if len(signature) != _LENGTH:
        found = f"{len(signature)} bytes" if len(signature) < _LENGTH else f"more than {_LENGTH} bytes"
        raise ArtifactError(f"{path}: found {found}, expected the {_LENGTH} of a signature; get the artifact again")
    for key in keys:
        if _is_signed_by(key, signature, manifest):
            return key
    raise ArtifactError(
        f"{folder}: the signature is not one of {names} over this manifest.json; somebody else signed the artifact, or "
        "it was changed afterwards: do not run it, get it again or ask its maker for the right key"
    )


def write_signature(folder: Path, manifest: bytes, key: Ed25519PrivateKey) -> None:
    """Sign the bytes of `folder`/manifest.json. The signature appears complete or not at all, in place of an older one.

    Raises UsageError where it cannot be written.
    """
    path = folder / SIGNATURE
    unfinished = folder / f".{SIGNATURE}-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(key.sign(manifest))
                stream.flush()
                os.fsync(descriptor)
            unfinished.replace(path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None


def _is_signed_by(key: PublicKey, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.key.verify(signature, data)
    except InvalidSignature:
        return False
    return True
