"""JSON of others is read strictly: one error names the file, what it holds and what is expected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss_export import json_file
from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.checkpoint.reader import open_checkpoint
from gptoss_export.checkpoint.text_files import default_stop_tokens
from gptoss_export.errors import ArtifactError, CheckpointError, GptOssExportError, UsageError
from gptoss_export.json_file import DEEPEST, LARGEST, LONGEST_NUMBER, read_object
from gptoss_export.kernels.tuned_configs import read_tuned_configs
from gptoss_export.model.config import read_config


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def read(tmp_path: Path, data: bytes) -> dict[str, object]:
    (tmp_path / "settings.json").write_bytes(data)
    return read_object(tmp_path / "settings.json", UsageError, advice="do this")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"a": [1, 2.5, null, true, "x"]}', {"a": [1, 2.5, None, True, "x"]}),
        ('{"город": "Москва"}'.encode(), {"город": "Москва"}),
        (rb'{"a": "\ud83d\ude00 \u00e9"}', {"a": "\U0001f600 é"}),
        (b'{"a": {"k": 1}, "b": {"k": 1}}', {"a": {"k": 1}, "b": {"k": 1}}),
        (b'{"a": -1e-400}', {"a": 0.0}),
        (b'{"a": %s}' % (b"9" * LONGEST_NUMBER), {"a": int("9" * LONGEST_NUMBER)}),
        (nested(DEEPEST), json.loads(nested(DEEPEST))),
    ],
)
def test_what_is_read(tmp_path: Path, data: bytes, expected: object) -> None:
    assert read(tmp_path, data) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as JSON (Expecting value"),
        (b"{", "cannot be read as JSON (Expecting property name"),
        (b'{"a": 1} {', "cannot be read as JSON (Extra data"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a": "caf\xe9"}', "byte 0xe9 at offset 10 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "byte 0xff at offset 0 is not UTF-8"),
        (b'{"a": 1, "a": 2}', "found the key 'a' twice in one object, expected it once"),
        (b'{"b": [{"a": 1, "a": 1}]}', "found the key 'a' twice"),
        (b'{"a": NaN}', "found NaN, expected a finite number"),
        (b'{"a": -Infinity}', "found -Infinity, expected a finite number"),
        (b'{"a": 1e999}', "found 1e999, expected a number that float64 can hold"),
        (b'{"a": %s}' % (b"9" * 10**6), "a number of 1000000 characters (99999999...), expected at most"),
        (b'{"a": 0.%s}' % (b"9" * 10**6), "a number of 1000002 characters (0.999999...), expected at most"),
        (rb'{"a": "\ud800"}', "half of a surrogate pair"),
        (nested(DEEPEST + 1), f"more than {DEEPEST} objects and lists"),
        (nested(10**6), f"more than {DEEPEST} objects and lists"),
        (b"[]", "holds a list, expected an object"),
        (b"null", "holds null, expected an object"),
        (b"7", "holds a number, expected an object"),
    ],
)
def test_what_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, data)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/settings.json: ") and message in text and text.endswith("; do this")
    assert len(text) < 400 + len(str(tmp_path))


def test_a_large_file(tmp_path: Path) -> None:
    """Made large without a byte on the disk."""
    (tmp_path / "large.json").write_bytes(b"{}")
    os.truncate(tmp_path / "large.json", 1 << 40)
    with pytest.raises(UsageError, match=f"large.json: found more than {LARGEST >> 20} MiB"):
        read_object(tmp_path / "large.json", UsageError)


def test_an_ascii_locale(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": "Москва"}', encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from gptoss_export.errors import UsageError;"
        "from gptoss_export.json_file import read_object; print(len(read_object(Path(sys.argv[1]), UsageError)['a']))"
    )
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(tmp_path / "a.json")]
    assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout == "6\n"


# Every file of JSON that is read

Reader = Callable[[Path], object]


def _manifest(path: Path) -> object:
    return load_manifest(path.parent)


def _config(path: Path) -> object:
    return read_config(path.parent)


def _index(path: Path) -> object:
    return open_checkpoint(path.parent)


def _generation_config(path: Path) -> object:
    return default_stop_tokens(path.parent, read_config(path.parent))


FILES = [
    ("manifest.json", _manifest, ArtifactError),
    ("config.json", _config, CheckpointError),
    ("model.safetensors.index.json", _index, CheckpointError),
    ("generation_config.json", _generation_config, CheckpointError),
    ("tuned.json", read_tuned_configs, UsageError),
]


@pytest.mark.parametrize(("name", "reader", "error"), FILES, ids=[name for name, *_ in FILES])
def test_every_file_is_read_so(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, reader: Reader, error: type[GptOssExportError]
) -> None:
    (tmp_path / "config.json").write_bytes((checkpoints["hf"] / "config.json").read_bytes())
    path = tmp_path / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(error, match=f"{name}: found a FIFO, expected a regular file"):
        reader(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(error, match=f"{name}: found a device, expected a regular file"):
        reader(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(error, match=f"{name}: found a folder, expected a regular file"):
        reader(path)
    path.rmdir()
    path.write_text('{"a": 1, "a": 2}')
    with pytest.raises(error, match=f"{name}: cannot be read as JSON .found the key 'a' twice"):
        reader(path)


def test_nothing_else_parses_a_file() -> None:
    """A description is compared in the form that it is read in: it is written and parsed again. So is
    a schema, what routes requests reads their bodies, and ranks tell each other objects."""
    package = Path(json_file.__file__).parent
    others = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "json.load" in path.read_text(encoding="utf-8")
    }
    parse_no_file = {"artifact/description.py", "structure/json_schema.py", "replicas/beginnings.py"} | {
        "ranks/control.py",
        "ranks/following.py",
    }
    assert others - parse_no_file == {"json_file.py"}
