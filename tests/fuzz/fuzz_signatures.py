"""Signed artifacts: one byte that changes in the manifest, the signature or the key is one error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fuzz_json import FILES, Bytes, Damage, byte_changes, change_bytes, damages, replace_file, write_damaged
from fuzz_scratch import Scratch
from fuzz_surface import Surface, link_folder, read_json, replace_bytes, wrong
from fuzz_worker import RIGHT, Outcome, Request, Result, Worker
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"


@dataclass(frozen=True)
class SignedCase:
    """what: manifest, signature or key."""

    what: str
    damage: Damage = Damage()  # noqa: RUF009 - it is frozen
    text: tuple[Bytes, ...] = ()
    file: str = ""


class SignedArtifacts(Surface[SignedCase]):
    """`inspect --trust` on an artifact that was signed and then changed."""

    name, share = "signed artifacts", 20

    def cases(self) -> SearchStrategy[SignedCase]:
        document = read_json(self.bases.uncompiled / MANIFEST)
        small = st.sampled_from(("signature", "key"))
        return st.one_of(
            st.builds(SignedCase, what=st.just("manifest"), damage=damages(document)),
            st.builds(SignedCase, what=st.sampled_from(("manifest", "signature", "key")), text=byte_changes()),
            st.builds(SignedCase, what=small, file=st.sampled_from(FILES)),
        )

    def unchanged(self) -> SignedCase:
        return SignedCase("key")

    def prepare(self, case: SignedCase, scratch: Scratch) -> Request:
        folder = link_folder(self.bases.uncompiled, scratch.input / "artifact")
        paths = {"manifest": folder / MANIFEST, "signature": folder / SIGNATURE, "key": scratch.input / "key.pub"}
        paths["signature"].write_bytes(KEY.sign(paths["manifest"].read_bytes()))
        write_public_key(paths["key"])
        path = paths[case.what]
        if case.file:
            replace_file(path, case.file)
        elif case.damage != Damage():
            write_damaged(path, read_json(path), case.damage, scratch.root)
        elif case.text:
            data = path.read_bytes()
            for item in case.text:
                data = change_bytes(data, item)
            replace_bytes(path, data)
        return Request("command", {"argv": ["inspect", str(folder), "--trust", str(paths["key"])]})

    def judge(self, case: SignedCase, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        folder = scratch.input / "artifact"
        manifest = (folder / MANIFEST).read_bytes()
        if manifest != (self.bases.uncompiled / MANIFEST).read_bytes():
            return wrong("a manifest that was changed after it was signed is trusted")
        if (folder / SIGNATURE).read_bytes() != KEY.sign(manifest):
            return wrong("another signature is trusted")
        if not _is_key((scratch.input / "key.pub").read_bytes()):
            return wrong("another key is trusted")
        return RIGHT


def write_public_key(path: Path) -> None:
    encoding, layout = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(KEY.public_key().public_bytes(encoding, layout))


def write_private_key(path: Path) -> None:
    encoding, layout = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.touch(mode=0o600)
    path.write_bytes(KEY.private_bytes(encoding, layout, serialization.NoEncryption()))


def _is_key(data: bytes) -> bool:
    try:
        return serialization.load_pem_public_key(data) == KEY.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
