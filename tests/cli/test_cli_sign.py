"""sign and --trust on the command line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from cli_helpers import invoke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a private key and of its public key."""
    key, private, public = Ed25519PrivateKey.generate(), tmp_path / "key", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def copy(uncompiled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(uncompiled, tmp_path / "copy")


def test_sign_says_what_it_signed(copy: Path, keys: tuple[Path, Path]) -> None:
    count = len(json.loads((copy / "manifest.json").read_text())["files"])
    done = invoke("sign", copy, "--key", keys[0])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"{copy}/manifest.json.sig: a signature over {count} files, ")
    (copy / "more.txt").write_text("")
    done = invoke("sign", copy, "--key", keys[0], "--replace", "--no-verify-hashes", "--json")
    found = json.loads(done.stdout)
    assert found.pop("bytes") > 1_000_000
    assert found == {
        "artifact": str(copy),
        "signature": str(copy / "manifest.json.sig"),
        "files": count,
        "hashes_verified": False,
    }
    assert "the signature does not cover and no command reads: more.txt" in done.stderr


def test_inspect_shows_the_signature(
    copy: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(*options: str) -> str:
        return next(line for line in invoke("inspect", copy, *options).stdout.splitlines() if "signature" in line)

    assert "none" in line()
    assert invoke("sign", copy, "--key", keys[0]).exit_code == 0
    assert "not checked; --trust PUBLICKEY checks it" in line()
    assert json.loads(invoke("inspect", copy, "--json").stdout)["signature"] == {"signed": True, "trusted_key": None}
    found = json.loads(invoke("inspect", copy, "--json", "--trust", keys[1]).stdout)["signature"]
    assert found == {"signed": True, "trusted_key": str(keys[1])}
    monkeypatch.chdir(tmp_path)
    assert "of key.pub, over the manifest; the files were not compared with it" in line("--trust", "key.pub")


@pytest.mark.parametrize(
    "command",
    [
        ("run", "--tokens", "1"),
        ("bench",),
        ("inspect",),
        ("verify", "--checkpoint", "{checkpoint}", "--oracle", "reference"),
    ],
    ids=lambda command: command[0],
)
def test_commands_refuse_what_is_not_signed(
    uncompiled: Path, checkpoints: dict[str, Path], keys: tuple[Path, Path], command: tuple[str, ...]
) -> None:
    name, *options = (word.format(checkpoint=checkpoints["hf"]) for word in command)
    done = invoke(name, uncompiled, *options, "--trust", keys[1])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {uncompiled}: is not signed (manifest.json.sig not found)")
    if name != "inspect":
        done = invoke(name, uncompiled, *options, "--trust", keys[1], "--no-verify-hashes")
        assert done.exit_code == 2
        assert "error: --trust: found --no-verify-hashes" in done.stderr


def test_any_of_several_keys_is_enough(copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.pub"
    public = Ed25519PrivateKey.generate().public_key()
    other.write_bytes(public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    assert invoke("sign", copy, "--key", keys[0]).exit_code == 0
    done = invoke("inspect", copy, "--trust", other)
    assert done.exit_code == 2 and f"the signature is not one of {other} over this manifest.json" in done.stderr
    assert invoke("inspect", copy, "--trust", other, "--trust", keys[1]).exit_code == 0


def test_errors_are_one_line(copy: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    for arguments, message in {
        ("sign", copy, "--key", keys[1]): f"error: --key {keys[1]}: found a public key, expected the private key",
        ("inspect", copy, "--trust", keys[0]): f"error: --trust {keys[0]}: found a private key, expected a public key",
        ("sign", copy, "--key", tmp_path): f"error: --key {tmp_path}: found a folder, expected a regular file",
        ("build", tmp_path / "none", "-o", tmp_path / "new", "--device", "cpu", "--sign-key", tmp_path / "nokey"): (
            f"error: --sign-key {tmp_path / 'nokey'}: not found"
        ),
        ("sign", tmp_path, "--key", keys[0]): f"error: {tmp_path}/manifest.json: not found",
    }.items():
        done = invoke(*arguments)
        assert done.exit_code == 2, arguments
        assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stdout == ""
    assert not (copy / "manifest.json.sig").exists()


def test_without_the_package(copy: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    done = invoke("inspect", copy, "--trust", keys[1])
    assert done.exit_code == 2
    assert "pip install 'gptoss-export[sign]'" in done.stderr
    assert invoke("inspect", copy).exit_code == 0, "without --trust nothing needs the package"
