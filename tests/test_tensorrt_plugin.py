"""Plugins inside of engines, as far as they go without the builder of the full TensorRT.

Its bindings register plugins, ask them for outputs, PTX and launches; they only need something to be linked to.
Here that is the lean runtime, behind a library of the few functions that it lacks. So everything runs but the build
of an engine, which the last test does where the full TensorRT is installed. All in a process of its own, since
the bindings take the name `tensorrt`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LACKING = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins",
)  # fmt: skip
FULL = importlib.util.find_spec("tensorrt") is not None and importlib.util.find_spec("tensorrt_rtx") is None


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    """A folder that stands for TensorRT's libraries."""
    for name in "tensorrt_bindings", "tensorrt_lean_libs":
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if shutil.which("gcc") is None:
        pytest.skip("gcc not found")
    folder = tmp_path_factory.mktemp("libraries")
    lean = Path(importlib.util.find_spec("tensorrt_lean_libs").origin).parent / "libnvinfer_lean.so.11"
    source = folder / "lacking.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in LACKING))
    for name in "libnvinfer", "libnvinfer_plugin", "libnvonnxparser":
        command = ["gcc", "-shared", "-fPIC", "-o", folder / f"{name}.so.11", f"-Wl,-soname,{name}.so.11", source]
        subprocess.run([*command, "-Wl,--no-as-needed", lean], check=True)
    (folder / lean.name).symlink_to(lean)
    return folder


REGISTER = """
import sys
from types import SimpleNamespace
import tensorrt_bindings
tensorrt_bindings.__name__ = "tensorrt"  # the package of that name hands on all of it
sys.modules["tensorrt"] = tensorrt_bindings
import tensorrt as trt
import tensorrt.plugin as made
sys.path.insert(0, sys.argv[1])
from test_tensorrt import ARCH, plugins_of_the_model
from gptoss_plugins.tensorrt_plugin import register

class Constants:  # stands for what the builder makes of numbers
    def constant(self, value):
        return SimpleNamespace(value=value)

made._tensor.SymIntExpr._exprBuilder = Constants()
seen = {}
for plugin in plugins_of_the_model(ARCH):
    maker = register(trt, plugin)
    assert maker is register(trt, plugin)  # once
    seen[plugin.name] = plugin
    definition = made._lib.QDP_REGISTRY["gptoss::" + plugin.name.replace("-", "_")]
    assert definition.input_tensor_names == list(plugin.inputs) and definition.num_outputs == len(plugin.outputs)
    instance = made._plugin_class._TemplateAOTPlugin(plugin.name.replace("-", "_"), "gptoss", len(plugin.outputs))
    instance.init(definition.register_func, {}, [], definition.aot_impl_func, [], None)
    types = {"float32": "FLOAT", "bfloat16": "BF16", "int64": "INT64", "int32": "INT32", "uint8": "INT8",
         "float16": "HALF"}
    def kind(name):
        return getattr(trt.DataType, types[str(plugin.tensors[name][0]).removeprefix("torch.")])
    given = [kind(name) for name in plugin.inputs]
    found = instance.get_output_data_types(given, [len(plugin.tensors[name][1]) for name in plugin.inputs])
    assert list(found) == [kind(name) for name in plugin.outputs], plugin.name
    for index, name in enumerate(plugin.outputs):
        alias = plugin.inputs.index(name) if name in plugin.inputs else -1
        assert instance.aliased_map.get(index, -1) == alias, (plugin.name, name)
    function, ptx, launch, extra = definition.aot_impl_func(*[None] * len(plugin.inputs), (), 0)
    assert (function, ptx) == (plugin.function, plugin.ptx) and len(extra) == 0
    numbers = [getattr(launch, name)._int_expr.value for name in
               ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")]
    assert numbers == [*plugin.grid, plugin.threads, 1, 1, plugin.shared], plugin.name
print("REGISTERED", len(seen))
"""


def test_registration(libraries):
    done = subprocess.run(
        [sys.executable, "-c", REGISTER, Path(__file__).parent],
        capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "REGISTERED" in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not FULL, reason="needs the full TensorRT (pip install tensorrt-cu13) without tensorrt_rtx beside it")
def test_an_engine_with_its_kernels_inside(checkpoints, cli, tmp_path):
    code, out, err = cli("build", checkpoints["hf"], "-o", tmp_path / "a", "--target", "tensorrt", "--device", "cuda",
                         "--max-context", 4400, "--prefill-chunk", 64)  # fmt: skip
    assert code == 0, err
    code, out, err = cli("verify", tmp_path / "a", "--checkpoint", checkpoints["hf"], "--json")
    assert code == 0, out + err
