"""Plugins: those of the tiny model, and those inside of engines as far as they go without the full TensorRT's builder.

Its Python bindings register plugins and ask them for outputs, PTX and launches. They only need something to be linked
to. Here that is the lean runtime, behind a library of the few functions that it lacks. So everything runs except for
the build of an engine, which the last test does where the full TensorRT is installed. The bindings take the name
`tensorrt`, so they are loaded in a process of their own (register_plugins.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gptoss_plugins
import pytest
import torch
from tensorrt_helpers import WRITTEN, plugins_of_the_model

from gptoss_export.errors import LoweringError
from gptoss_export.targets.tensorrt import plugins
from gptoss_export.targets.tensorrt.edition import FULL, installed_edition

pytest.importorskip("triton", reason="triton is not installed")

FOLDERS = (str(Path(gptoss_plugins.__file__).parent), str(Path(torch.__file__).parent.parent), tempfile.gettempdir())
_LACKING = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_120"])
def test_plugins_of_the_model(arch):
    """They compile, and say truly what they take and write."""
    written: dict[str, set[str]] = {}
    in_place = set()
    for plugin in plugins_of_the_model(arch):
        (entry,) = re.findall(r"\.visible \.entry \w+\((.*?)\)", plugin.ptx, re.DOTALL)
        assert entry.count(".param") == len(plugin.inputs) + len(plugin.outputs)
        assert set(plugin.tensors) == {*plugin.inputs, *plugin.outputs}
        assert f".target {arch}" in plugin.ptx and plugin.cubin.startswith(b"\x7fELF")
        assert ("griddepcontrol" in plugin.ptx) == (arch in ("sm_90", "sm_120") and plugin.function.endswith("_pdl"))
        assert not any(folder.encode() in plugin.ptx.encode() + plugin.cubin for folder in FOLDERS)
        written.setdefault(plugin.function, set()).update(plugin.outputs)
        in_place |= {*plugin.inputs} & {*plugin.outputs}
    assert in_place == {"k_cache", "v_cache"}
    assert written == WRITTEN


@pytest.mark.parametrize(
    ("parameters", "body", "message"),
    [
        (
            ["f_param_0", "f_param_1", "f_param_2"],
            "ld.param.b64 %rd1, [f_param_2];",
            "reads its scratch pointer f_param_2",
        ),
        (["f_param_0", "f_param_1"], "ret;", "PTX has 2 parameters, expected 1 and 2 for scratch"),
    ],
)
def test_a_kernel_that_cannot_be_a_plugin(parameters, body, message):
    from gptoss_plugins.plugin import _with_parameters

    listed = ",\n".join(f"\t.param .u64 .ptr .global .align 1 {name}" for name in parameters)
    ptx = f".visible .entry f(\n{listed}\n)\n{{\n{body}\n}}\n"
    with pytest.raises(ValueError, match=message):
        _with_parameters(ptx, "f", ["x"], ["x"], [])


class _Entry:
    """An entry point."""

    def __init__(self, value: str, offered: object) -> None:
        self.value, self._offered = value, offered

    def load(self) -> object:
        if isinstance(self._offered, Exception):
            raise self._offered
        return self._offered


@pytest.mark.parametrize(
    ("offered", "message"),
    [
        ([], "no installed package offers maker .entry point group gptoss_export.tensorrt"),
        ([_Entry("a:Maker", 1), _Entry("b:Maker", 2)], "maker .*offered twice .a:Maker, b:Maker"),
        ([_Entry("a:Maker", ImportError("no triton"))], "a:Maker cannot be imported: no triton"),
    ],
)
def test_missing_or_ambiguous_plugin_support_is_an_error(monkeypatch, offered, message):
    monkeypatch.setattr(plugins, "entry_points", lambda group, name: offered)
    with pytest.raises(LoweringError, match=message):
        plugins.plugin_support()


# ---- inside of engines -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    """A folder with libraries that TensorRT's bindings can be linked to."""
    for name in "tensorrt_bindings", "tensorrt_lean_libs":
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if shutil.which("gcc") is None:
        pytest.skip("gcc not found")
    folder = tmp_path_factory.mktemp("libraries")
    origin = importlib.util.find_spec("tensorrt_lean_libs").origin
    lean = Path(origin).parent / "libnvinfer_lean.so.11"
    source = folder / "lacking.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _LACKING))
    for name in "libnvinfer", "libnvinfer_plugin", "libnvonnxparser":
        command = ["gcc", "-shared", "-fPIC", "-o", folder / f"{name}.so.11", f"-Wl,-soname,{name}.so.11", source]
        subprocess.run([*command, "-Wl,--no-as-needed", lean], check=True)
    (folder / lean.name).symlink_to(lean)
    return folder


def test_registration(libraries):
    script = Path(__file__).with_name("register_plugins.py")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    *_, last = done.stdout.splitlines()  # TensorRT prints warnings before it
    assert set(json.loads(last)) == WRITTEN.keys()


@pytest.mark.gpu
@pytest.mark.skipif(
    (edition := installed_edition()) is None or edition.name != FULL,
    reason="needs the full TensorRT (pip install tensorrt-cu13) and no tensorrt_rtx",
)
def test_an_engine_with_its_kernels_inside(checkpoints, cli, tmp_path):
    options = ["--target", "tensorrt", "--device", "cuda", "--max-context", 4400, "--prefill-chunk", 64]
    code, out, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", *options, "--experimental-full-tensorrt")
    assert code == 0, err
    code, out, err = cli("verify", tmp_path / "a", "--checkpoint", checkpoints["hf"], "--json")
    assert code == 0, out + err
