"""A compiled artifact with adapter slots: in this process with torch, by the command line without it, and served."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_samples import KINDS, Oracle, make_adapter
from openai import OpenAI
from transformers import GptOssForCausalLM, Mxfp4Config

from artifacts import SEED, TWO_LAYERS, compile_artifact, made_once
from gptoss_export import Engine, Runner, load, verify
from gptoss_export.checkpoint.synthetic import layout_for, write_synthetic
from gptoss_export.verification.metric import Deviation, deviation

CLOSE = Deviation(1e-4, 2e-5)
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of two layers and its artifact: one width, one chunk, two adapter slots."""

    def make(root: Path) -> None:
        config, layout = TWO_LAYERS, layout_for("hf", "mxfp4")
        write_synthetic(root / "checkpoint", config, layout, SEED, torch.device("cpu"), tokenizer=True)
        sizes = {"max_batch": 3, "widths": (3,), "max_context": 300, "prefill_chunks": (32,)}
        compile_artifact(root / "checkpoint", root / "tiny", **sizes, adapter_slots=2, adapter_rank=8)

    return made_once(tmp_path_factory, "adapted", make)


@pytest.fixture(scope="module")
def folders(made: Path) -> dict[str, Path]:
    return {kind: made / kind for kind in ("attention", "both")}


@pytest.fixture(scope="module")
def computed(made: Path, folders: dict[str, Path]) -> dict[str | None, Oracle]:
    """What PEFT computes with each adapter, which are written, and transformers without one."""
    quantization = Mxfp4Config(dequantize=True)
    model = GptOssForCausalLM.from_pretrained(
        made / "checkpoint", dtype=torch.float32, attn_implementation="eager", quantization_config=quantization
    )
    model = model.eval().float()
    oracles = {kind: make_adapter(model, folder, **KINDS[kind]) for kind, folder in folders.items()}
    return {None: Oracle(model), **oracles}


@pytest.fixture(scope="module")
def loaded_artifact(made: Path, computed: dict[str | None, Oracle]) -> Runner:
    return load(made / "tiny")


def test_logits(
    loaded_artifact: Runner, folders: dict[str, Path], computed: dict[str | None, Oracle], sequence: list[int]
) -> None:
    """Different adapters and none in one step, past the sliding window and behind the border of a chunk."""
    runner, used = loaded_artifact, (("both", 170), (None, 33), ("attention", 64))
    for kind, folder in folders.items():
        runner.load_adapter(kind, folder)
    for slot, (kind, length) in enumerate(used):
        runner.reset(slot, kind)
        found = torch.cat([torch.as_tensor(block) for block in runner.prefill_logits(sequence[:length], slot)])
        assert deviation(found, computed[kind].logits(sequence[:length])).within(CLOSE), kind
    logits = torch.as_tensor(runner.decode([sequence[length] for _, length in used]))
    for slot, (kind, length) in enumerate(used):
        assert deviation(logits[slot], computed[kind].logits(sequence[: length + 1])[-1]).within(CLOSE), kind
    runner.reset()
    for kind in folders:
        runner.unload_adapter(kind)


def test_an_engine_while_adapters_are_swapped(
    loaded_artifact: Runner, folders: dict[str, Path], computed: dict[str | None, Oracle], sequence: list[int]
) -> None:
    """In a thread of its own: one sequence runs through, others come with what is loaded meanwhile."""
    runner = loaded_artifact
    runner.load_adapter("kept", folders["both"])
    with Engine(runner) as engine:
        running = engine.submit(sequence[:40], 60, stop_tokens=(), adapter="kept")
        for _ in range(2):
            runner.load_adapter("other", folders["attention"])
            found = engine.submit(sequence[:40], 5, stop_tokens=(), adapter="other").result()
            assert found.tokens == computed["attention"].continued(sequence[:40], 5)
            runner.unload_adapter("other")
        assert running.result().tokens == computed["both"].continued(sequence[:40], 60)
    runner.reset()
    runner.unload_adapter("kept")


def test_the_command_line(
    made: Path, folders: dict[str, Path], computed: dict[str | None, Oracle], cli: Cli, tmp_path: Path
) -> None:
    """It runs without torch's Python."""
    command = (
        "run",
        made / "tiny",
        "--tokens",
        ",".join(map(str, PROMPT)),
        "--max-new-tokens",
        8,
        "--no-stop",
        "--json",
    )
    for kind, options in (("both", ("--adapter", f"mine={folders['both']}")), (None, ())):
        code, out, err = cli(*command, *options)
        assert code == 0, err
        assert json.loads(out)["tokens"] == computed[kind].continued(PROMPT, 8)
    lines = tmp_path / "prompts"
    lines.write_text(json.dumps({"tokens": PROMPT}) + "\n")
    code, out, err = cli("run", made / "tiny", "--prompts-file", lines, "--max-new-tokens", 4, "--no-stop",
                         "--adapter", f"mine={folders['attention']}")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["tokens"] == computed["attention"].continued(PROMPT, 4)
    code, _, err = cli(*command, "--adapter", f"mine={tmp_path}")
    assert code == 2 and "adapter_config.json: not found" in err and "Traceback" not in err
    code, out, err = cli("inspect", made / "tiny")
    assert code == 0 and "2 at a time, of rank 8 or less" in out, err


def test_verify(made: Path, folders: dict[str, Path], computed: Any) -> None:
    report = verify(made / "tiny", made / "checkpoint", lengths=[33, 170], adapter=folders["both"])
    assert report.passed and all(row.all.max < 1e-4 for row in report.rows), report.rows


def test_served(made: Path, folders: dict[str, Path], computed: dict[str | None, Oracle]) -> None:
    """Clients choose by the name of the model; the log probabilities are those of PEFT's model."""
    options = [word for kind, folder in folders.items() for word in ("--adapter", f"{kind}={folder}")]
    command = [sys.executable, "-m", "gptoss_export", "serve", str(made / "tiny"), "--port", "0", "--json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = f"{json.loads(process.stdout.readline())['url']}/v1"
            with OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
                assert [model.id for model in client.models.list()] == ["tiny", *folders]
                for kind, name in ((None, "tiny"), *((kind, kind) for kind in folders)):
                    answer = client.completions.create(
                        model=name, prompt=PROMPT, max_tokens=1, temperature=0, logprobs=0
                    )
                    wanted = computed[kind].logits(PROMPT)[-1].log_softmax(-1).max()
                    logprobs = answer.choices[0].logprobs
                    assert answer.model == name and logprobs is not None
                    assert logprobs.token_logprobs == pytest.approx([float(wanted)], abs=1e-3)
        finally:
            process.terminate()
            process.communicate(timeout=60)
