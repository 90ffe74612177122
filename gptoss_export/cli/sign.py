"""gptoss-export sign"""

from __future__ import annotations

from pathlib import Path

import click

from ..shown_text import size
from .errors import reports_errors
from .params import artifact_argument, json_option
from .plain import say
from .progress import progress
from .tables import print_json


@click.command("sign")
@artifact_argument
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="KEYFILE",
    required=True,
    help="File with a private Ed25519 key: PEM as `openssl genpkey -algorithm ed25519` writes it, or OpenSSH.",
)
@click.option("--replace", is_flag=True, help="Replace a signature that is there.")
@click.option(
    "--verify-hashes/--no-verify-hashes",
    default=True,
    show_default=True,
    help="Compare the sha256 of every file with the manifest, not only its size.",
)
@json_option
@reports_errors
def command(artifact: Path, key: Path, replace: bool, verify_hashes: bool, as_json: bool) -> None:
    """Sign ARTIFACT, so that --trust accepts it.

    The signature is written to manifest.json.sig in ARTIFACT. It covers the manifest, and with it the files that the
    manifest lists. These are compared with the manifest first. ARTIFACT's code is not run.
    """
    from ..artifact.signature import SIGNATURE
    from ..artifact.signing import sign

    with progress() as shown:
        manifest = sign(artifact, key, replace, verify_hashes, shown)
    total = sum(spec.bytes for spec in manifest.files.values())
    if as_json:
        print_json(
            {
                "artifact": str(artifact),
                "signature": str(artifact / SIGNATURE),
                "files": len(manifest.files),
                "bytes": total,
                "hashes_verified": verify_hashes,
            }
        )
        return
    say(f"{artifact / SIGNATURE}: a signature over {len(manifest.files)} files, {size(total)}")
