"""Help, and the commands that need no special test: inspect, targets, bench, make-checkpoint."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import invoke

from gptoss_export.artifact.manifest import load_manifest
from gptoss_export.cli import COMMANDS
from gptoss_export.targets import TARGETS


@pytest.mark.parametrize("arguments", [[], ["build"], ["run"]], ids=" ".join)
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom gptoss_export.cli import main\n"
        f"try: main([*{arguments!r}, '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'rich', 'transformers', 'triton'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in (COMMANDS if not arguments else ["--json"]))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage:")
    assert "--json" in done.stdout


def test_inspect_json_is_the_manifest(artifact: Path) -> None:
    done = invoke("inspect", artifact, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("tables") == {}
    assert found.pop("signature") == {"signed": False, "trusted_key": None}
    assert found == json.loads((artifact / "manifest.json").read_text())


def test_inspect_shows_the_build(artifact: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = invoke("inspect", artifact, "--html", page)
    assert done.exit_code == 0, done.stderr
    manifest = load_manifest(artifact)
    lines = done.stdout.splitlines()
    for name, value in {"max_context": manifest.sizes.max_context, "max_batch": manifest.sizes.max_batch}.items():
        assert any(name in line and f" {value} " in line for line in lines), f"build option {name}"
    assert any("tuned configs" in line and "none of the project's kernels" in line for line in lines)
    assert all(program in done.stdout and program in page.read_text() for program in manifest.programs)
    assert all(file in done.stdout for file in manifest.files)
    only_page = tmp_path / "second.html"
    done = invoke("inspect", artifact, "--html", only_page, "--json")
    assert json.loads(done.stdout)["target"] == manifest.target
    assert "prefill_64" in only_page.read_text()


def test_targets() -> None:
    done = invoke("targets", "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["targets"]
    assert {row["target"] for row in rows} == set(TARGETS)
    assert all(row.keys() == {"target", "device", "dtypes", "ready", "detail", "fix"} for row in rows)
    assert {row["device"]: row["ready"] for row in rows if row["target"] == TARGETS[0]}["cpu"]
    done = invoke("targets")
    assert all(heading in done.stdout for heading in ("target", "device", "dtypes", "here", "found", "fix"))


def test_bench(cli: Callable[..., tuple[int, str, str]], artifact: Path) -> None:
    code, out, err = cli("bench", artifact, "--batch", "1,2", "--context", "40", "--json")
    assert code == 0, err
    report = json.loads(out)
    rows = report["measurements"]
    assert [(row["batch"], row["context"]) for row in rows] == [(1, 40), (2, 40)]
    for row in rows:
        assert row["decode_tok_s"] == pytest.approx(row["batch"] / row["decode_step_s"])
        assert row["share_of_floor"] == pytest.approx(row["floor_s"] / row["decode_step_s"])
        assert row["ttft_s"] > 0
    # weights outside of the experts are read once, whatever the batch
    assert rows[0]["floor_s"] < rows[1]["floor_s"] < 2 * rows[0]["floor_s"]


def test_bench_of_a_workload(artifact: Path, tmp_path: Path) -> None:
    requests = [{"prompt": 1 + 9 * index, "output": 2 + index} for index in range(7)]
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"name": "small", "seed": 7, "requests": requests}))
    done = invoke("bench", artifact, "--workload", path, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    found = report["workload"]
    assert report["measurements"] == [] and found["name"] == "small"
    assert (found["requests"], found["prompt_tokens"], found["output_tokens"]) == (7, 196, 35)
    assert found["output_tok_s"] == pytest.approx(35 / found["seconds"])
    assert 0 < found["first_token_s"]["p50"] <= found["first_token_s"]["p99"] <= found["seconds"]
    table = invoke("bench", artifact, "--workload", path)
    assert "first token ms, p50 and p99" in table.stdout and "prefill tok/s" not in table.stdout
    path.write_text(json.dumps({"name": "long", "seed": 7, "requests": [{"prompt": 4000, "output": 500}]}))
    refused = invoke("bench", artifact, "--workload", path)
    assert refused.exit_code == 2 and "request 0: 4000 and 500 tokens" in refused.stderr


def test_make_checkpoint(tmp_path: Path) -> None:
    done = invoke("make-checkpoint", tmp_path / "made", "--preset", "tiny", "--layers", 2, "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["layout"] == "hf"
    assert facts["bytes"] == sum(path.stat().st_size for path in (tmp_path / "made").iterdir())
    assert json.loads((tmp_path / "made" / "config.json").read_text())["num_hidden_layers"] == 2
