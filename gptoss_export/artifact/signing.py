"""Signs an artifact that was built before."""

from __future__ import annotations

from pathlib import Path

from ..errors import LISTED, ArtifactError, UsageError
from ..progress import Progress
from .files import check_hashes, check_sizes
from .keys import PublicKey, read_private_key
from .manifest import NAME, Manifest, load_manifest
from .signature import SIGNATURE, check_signature, has_signature, write_signature


def sign(
    artifact: Path | str,
    key: Path | str,
    replace: bool = False,
    verify_hashes: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Sign the artifact with the private key in file `key`; returns the manifest that the signature covers.

    replace        replace a signature that is there
    verify_hashes  read every file and compare its sha256; sizes are compared in any case

    Raises UsageError for a key that cannot be used and for an artifact that is signed already, ArtifactError where the
    files are not those of the manifest.
    """
    folder, progress = Path(artifact), progress or Progress()
    private_key = read_private_key(key, "--key")
    signed: list[bytes] = []
    manifest = load_manifest(folder, check=signed.append)
    if not replace and has_signature(folder):
        try:
            check_signature(folder, signed[0], [PublicKey(Path(key), private_key.public_key())])
            state = "is signed with this key already"
        except ArtifactError:
            state = "has a signature already, which is not one of this key over this manifest"
        raise UsageError(f"{folder}: {state} ({SIGNATURE}); give --replace to sign it again")
    with progress.stage("check files"):
        check_sizes(manifest.files, folder)
        if verify_hashes:
            check_hashes(manifest.files, folder, manifest.files)
    if unlisted := _unlisted(folder, manifest):
        more = f" and {len(unlisted) - LISTED} more" if len(unlisted) > LISTED else ""
        progress.note(
            f"files that {NAME} does not list, which the signature does not cover and no command reads: "
            f"{', '.join(unlisted[:LISTED])}{more}"
        )
    write_signature(folder, signed[0], private_key)
    return manifest


def _unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Files of the folder that the manifest does not name."""
    known = {*manifest.files, NAME, SIGNATURE}
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return sorted(name for name in found if name not in known)
