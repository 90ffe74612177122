"""What a child of the fork server can do. Each job takes and returns what JSON can hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def import_everything() -> None:
    """What the jobs need, so that a child imports nothing that takes long. Starts no thread."""
    import importlib

    import safetensors.torch
    import tokenizers
    import torch

    import gptoss_export
    from gptoss_export import building, loading, targets
    from gptoss_export.cli import COMMANDS

    torch.set_num_threads(1)
    for module in (safetensors.torch, tokenizers, gptoss_export, building, loading):
        assert module
    for command in COMMANDS.values():
        importlib.import_module(f"gptoss_export.cli.{command}")
    for target in targets.TARGETS:
        targets.target_module(target, "load")
    for name in ("bench", "verification.verify", "verification.oracles", "kernels.tuned_configs"):
        importlib.import_module(f"gptoss_export.{name}")


def is_refusal(error: BaseException) -> bool:
    """Whether an exception is one that this project raises on purpose."""
    from gptoss_export.errors import GptOssExportError

    return isinstance(error, GptOssExportError)


def command(argv: list[str]) -> None:
    """The command line. Ends with SystemExit."""
    from gptoss_export.cli import main

    main(argv, prog_name="gptoss-export")


def build(argv: list[str]) -> None:
    """The command line with a compiler that writes a few bytes in place of code."""
    from pathlib import Path

    from gptoss_export.targets.aoti.compile import AotiCompiler
    from gptoss_export.targets.base_compiler import Compilation, CompileJob

    class FewBytes(Compilation):
        def __init__(self, job: CompileJob) -> None:
            self._job = job

        def compile(self, program: Any) -> None:
            """Compiles nothing."""

        def finish(self) -> list[Path]:
            (self._job.folder / "code").write_bytes(b"no code")
            return [Path("code")]

    def start(self: AotiCompiler, job: CompileJob) -> Compilation:
        return FewBytes(job)

    def programs(self: AotiCompiler, every: tuple[Any, ...]) -> tuple[Any, ...]:
        return every[-1:]  # the quickest to trace

    AotiCompiler.start, AotiCompiler.programs = start, programs  # type: ignore[method-assign]
    command(argv)


def checkpoint(folder: str) -> dict[str, Any]:
    """What this project reads in a checkpoint: its config, its stop tokens, a hash of each stored tensor."""
    from gptoss_export.checkpoint import open_checkpoint
    from gptoss_export.checkpoint.text_files import default_stop_tokens

    opened = open_checkpoint(Path(folder))
    stops = default_stop_tokens(opened.folder, opened.config)
    opened.check_finite()
    tensors = {}
    for name in opened.files:
        tensor = opened.stored(name)
        content = tensor.contiguous().flatten().view(_uint8()).numpy().tobytes() if tensor.numel() else b""
        tensors[name] = [list(tensor.shape), hashlib.sha256(content).hexdigest()]
    for _, group in opened.converted_groups():
        del group
    return {"config": opened.config.to_json(), "stop_tokens": list(stops), "tensors": tensors}


def _uint8() -> Any:
    import torch

    return torch.uint8


def text(folder: str, prompt: str, tokens: list[int], special_tokens: bool) -> dict[str, Any]:
    """What `run` makes of a prompt and of tokens, at once and one at a time."""
    from gptoss_export.cli.text import open_text
    from gptoss_export.text.text_stream import TextStream

    manifest = SimpleNamespace(files={"tokenizer.json": None}, model=SimpleNamespace(vocab_size=2**32))
    runner: Any = SimpleNamespace(folder=Path(folder), manifest=manifest)
    opened = open_text(runner, "--prompt", special_tokens)
    assert opened is not None
    stream = TextStream(opened)
    streamed = "".join([*map(stream.push, tokens), stream.end()])
    return {"ids": opened.encode(prompt), "text": opened.decode(tokens), "streamed": streamed}


def plain_text(path: str, prompt: str, tokens: list[int], special_tokens: bool) -> dict[str, Any]:
    """The same by the library alone."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    decoded = tokenizer.decode(tokens, skip_special_tokens=not special_tokens)
    return {"ids": tokenizer.encode(prompt).ids, "text": decoded}


def reference(folder: str, prompt: list[int], tokens: list[int]) -> dict[str, Any]:
    """How far the tokens that an artifact chose are from the most likely ones, by the references of all ops on what
    its manifest and its weights say: the largest difference of logits, as a part of the largest logit."""
    import torch
    from fuzz_weights import read_tensors

    from gptoss_export.artifact.programs import Sizes, kv_cache_names, kv_inputs, page_table_names
    from gptoss_export.compiler.export import build_model
    from gptoss_export.model.config import ModelConfig
    from gptoss_export.model.kv_cache import pages_for

    manifest = json.loads(Path(folder, "manifest.json").read_bytes())
    config = ModelConfig.from_json(manifest["model"])
    files = {part["file"] for weight in manifest["weights"].values() for part in weight["parts"]}
    stored = {name: read_tensors(Path(folder, name)) for name in files}
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "U8": torch.uint8}
    model = build_model(config, torch.float32).to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        parts = [stored[part["file"]][part["tensor"]] for part in manifest["weights"][name]["parts"]]
        read = [torch.frombuffer(bytearray(part.data), dtype=dtypes[part.dtype]).view(part.shape) for part in parts]
        parameter.data.copy_(torch.cat(read))
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    specs = kv_inputs(config, Sizes((1,), ids.size(1), (ids.size(1),)), "float32")
    count = pages_for(ids.size(1))
    tensors = {item.name: torch.zeros(item.sizes(count + 1)) for item in specs}
    pages = dict.fromkeys(page_table_names(config), torch.arange(1, count + 1, dtype=torch.int32)[None])
    caches = [(tensors[keys], tensors[values]) for keys, values in kv_cache_names(config)]
    with torch.inference_mode():
        positions, slots = torch.arange(ids.size(1))[None], torch.zeros(1, dtype=torch.int64)
        hidden = model.backbone(ids, positions, slots, pages, caches)[len(prompt) - 1 :]
        logits = model.unembed(hidden)[0]
    gaps = logits.max(-1).values - logits[torch.arange(len(tokens)), torch.tensor(tokens)]
    return {"gap": float(gaps.max() / logits.abs().max()), "tokens": logits.argmax(-1).tolist()}


def schedule(folder: str) -> dict[str, Any]:
    """The schedule of the TensorRT artifact in `folder`, as it is read."""
    import dataclasses

    from gptoss_export.artifact.manifest import load_manifest
    from gptoss_export.targets.tensorrt.check import load_schedule

    read = load_schedule(Path(folder), load_manifest(Path(folder)))
    value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(read)))
    return value


def tuned_configs(path: str, output: str) -> dict[str, Any]:
    """Read tuned configs, write them again and look one up."""
    import dataclasses

    from gptoss_export.kernels.tuned_configs import read_tuned_configs, write_tuned_configs

    read = read_tuned_configs(Path(path))
    write_tuned_configs(read, Path(output))
    again = read_tuned_configs(Path(output))
    assert again.entries == tuple(sorted(read.entries, key=lambda entry: (entry.name, str(entry.shape))))
    assert again.with_entries(list(read.entries)).label == again.label
    value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(dataclasses.replace(read, path=None))))
    return value


def crash() -> None:
    """For tests of the server: a signal."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def busy() -> None:
    """For tests of the server: no end."""
    while True:
        pass


def fail() -> None:
    """For tests of the server: an exception that is a bug."""
    raise KeyError("lost")


def write(path: str) -> None:
    """For tests of the server: a new file."""
    Path(path).write_text("new")


def say(text: str) -> None:
    """For tests of the server: an error with this message."""
    import sys

    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def _jobs(*functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {function.__name__: function for function in functions}


JOBS = _jobs(
    command, build, checkpoint, text, plain_text, reference, schedule, tuned_configs, crash, busy, fail, write, say
)
