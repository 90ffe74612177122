"""Text goes in and comes out as it is, whatever bytes, locale and tokenizer file a user has."""

import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "gptoss_export"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([b"run", b"x", b"--prompt", b"caf\xe9"], r"--prompt caf\xe9: found text that is not UTF-8"),
        ([b"run", b"x", b"--prompt=caf\xe9"], r"--prompt=caf\xe9: found text that is not UTF-8"),
        ([b"run", b"\xff", b"--tokens", b"1"], r"Error: \xff: found text that is not UTF-8"),
        ([b"build", b"x", b"-o", b"\xe9"], r"\xe9: found text that is not UTF-8"),
        ([b"verify", b"x", b"--checkpoint", b"y", b"--html", b"\xe9"], r"--html \xe9: found text that is not UTF-8"),
    ],
)
def test_arguments_that_are_not_utf8(arguments: list[bytes], message: str) -> None:
    done = subprocess.run([*map(os.fsencode, COMMAND), *arguments], capture_output=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
