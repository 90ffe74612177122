"""The commands: what they print, their exit codes, and that bad input never makes a traceback."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from gptoss_export.cli import COMMANDS


def test_help_needs_no_torch():
    code = ("import sys\nfrom gptoss_export.cli import main\n"
            "try: main(['--help'])\nexcept SystemExit: pass\n"
            "assert not {'torch', 'rich', 'transformers', 'triton'} & set(sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0 and "Usage:" in out


def test_run_json(cli, artifact, runner, tmp_path):
    file = tmp_path / "logits.safetensors"
    code, out, _ = cli("run", artifact, "--tokens", "5,6 7", "--max-new-tokens", 6, "--json", "--logprobs",
                       "--save-logits", file, "--stop-token", 0)  # fmt: skip
    assert code == 0
    facts = json.loads(out)
    expected = runner.generate([5, 6, 7], 6, stop_tokens=[0])
    assert facts["prompt_tokens"] == [5, 6, 7] and facts["tokens"] == expected.tokens
    assert facts["logprobs"] == pytest.approx(expected.logprobs, abs=1e-4)
    assert {"load_s", "ttft_s", "decode_tok_s"} <= facts["timing"].keys()
    logits = load_file(file)["logits"]
    assert logits.shape == (6, 512) and logits.argmax(-1).tolist() == facts["tokens"]


def test_run_text(cli, artifact, tmp_path):
    code, streamed, _ = cli("run", artifact, "--prompt", "Hello", "--max-new-tokens", 12)
    assert code == 0
    code, out, _ = cli("run", artifact, "--prompt", "Hello", "--max-new-tokens", 12, "--json")
    assert json.loads(out)["text"] == streamed.rstrip("\n")
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("1, 2\n3")
    code, out, _ = cli("run", artifact, "--tokens-file", tokens, "--max-new-tokens", 3, "--json")
    assert code == 0 and json.loads(out)["prompt_tokens"] == [1, 2, 3]


def test_inspect_targets_bench(cli, artifact, tmp_path):
    code, out, _ = cli("inspect", artifact, "--json")
    assert code == 0 and json.loads(out)["programs"].keys() == {"decode", "prefill_16", "prefill_64", "unembed_1", "unembed_64"}
    page = tmp_path / "page.html"
    code, out, _ = cli("inspect", artifact, "--html", page)
    assert code == 0 and "prefill_64" in out and "prefill_64" in page.read_text()
    code, out, _ = cli("inspect", artifact, "--html", page, "--json")
    assert code == 0 and json.loads(out)["target"] == "aoti"
    code, out, _ = cli("targets", "--json")
    assert code == 0 and {row["device"]: row["ready"] for row in json.loads(out)["targets"]}["cpu"]
    code, out, _ = cli("bench", artifact, "--batch", "1,3", "--context", "40", "--json")
    rows = json.loads(out)["measurements"]
    assert [(row["batch"], row["context"]) for row in rows] == [(1, 40), (3, 40)]
    assert all(row["decode_tok_s"] > 0 and row["floor_s"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{missing}", "--tokens", "1"], "not a folder"),
        (["run", "{artifact}"], "found none"),
        (["run", "{artifact}", "--tokens", "1", "--prompt", "x"], "--prompt and --tokens"),
        (["run", "{artifact}", "--tokens", "1,x"], "not a list of whole numbers"),
        (["run", "{artifact}", "--tokens", ""], "holds no tokens"),
        (["run", "{artifact}", "--tokens", "600"], "token 600"),
        (["run", "{artifact}", "--tokens", "1", "--temperature", "-1"], "temperature"),
        (["run", "{artifact}", "--tokens", "1", "--save-logits", "{missing}/x"], "in a folder that exists"),
        (["inspect", "{artifact}", "--html", "{missing}/x.html"], "in a folder that exists"),
        (["make-checkpoint", "/proc/made", "--preset", "tiny"], "/proc"),
        (["run", "{artifact}", "--tokens-file", "{missing}"], "--tokens-file"),
        (["build", "{missing}", "-o", "{missing}"], "not a folder"),
        (["build", "{checkpoint}", "-o", "{artifact}"], "exists already"),
        (["build", "{checkpoint}", "-o", "{missing}", "--target", "abacus"], "--target abacus"),
        (["verify", "{artifact}", "--checkpoint", "{missing}"], "not a folder"),
        (["verify", "{artifact}", "--checkpoint", "{checkpoint}", "--lengths", "9999"], "expected 1 to"),
        (["bench", "{artifact}", "--batch", "9", "--context", "99999"], "--batch 9"),
        (["inspect", "{checkpoint}"], "is no artifact"),
        (["make-checkpoint", "{missing}", "--preset", "tiny", "--layout", "original", "--experts", "bf16"], "MXFP4 only"),
        (["make-checkpoint", "{artifact}", "--preset", "tiny"], "exists already"),
        (["no-such-command"], "No such command"),
    ],
)
def test_bad_input(cli, artifact, checkpoints, tmp_path, arguments, message):
    names = {"artifact": artifact, "checkpoint": checkpoints["hf"], "missing": tmp_path / "missing"}
    code, out, err = cli(*(argument.format(**names) for argument in arguments))
    assert code == 2 and out == ""
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "missing").exists()


def test_make_checkpoint(cli, tmp_path):
    code, out, _ = cli("make-checkpoint", tmp_path / "made", "--preset", "tiny", "--layers", 2, "--json")
    assert code == 0 and json.loads(out)["layout"] == "hf"
    assert json.loads((tmp_path / "made" / "config.json").read_text())["num_hidden_layers"] == 2
