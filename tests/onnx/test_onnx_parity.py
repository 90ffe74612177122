"""ONNX models for cpu give the oracle's logits, and onnxruntime-genai generates the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_helpers import KINDS, PROMPT, build_onnx, cpu_artifacts

from gptoss_export import load, verify
from gptoss_export.artifact.manifest import load_manifest


@pytest.fixture(scope="module")
def artifacts(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cpu_artifacts(checkpoints["hf"], tmp_path_factory)


def test_attention_of_onnxruntime_at_every_border(artifacts, checkpoints):
    """Window, chunk and YaRN's 4,096 positions, and a batch of unequal prompts."""
    report = verify(artifacts["default"], checkpoints["hf"], "transformers", [1, 31, 32, 33, 64, 65, 97, 4097])
    assert report.passed, report.rows
    assert all(row.top1 == 1.0 for row in report.rows), report.rows
    assert report.rows[-1].label.startswith("batch")


def test_standard_operators(artifacts, checkpoints):
    """The portable model, compared with the oracle and with the default model."""
    lengths = [1, 31, 32, 33, 65, 97, 200, 4097]
    report = verify(
        artifacts["portable"], checkpoints["hf"], "transformers", lengths, compare_with=artifacts["default"]
    )
    assert report.passed, report.rows
    assert all(row.top1 == 1.0 for row in report.rows), report.rows
    assert all(row.comparison is not None for row in report.rows)


@pytest.mark.parametrize("layout", ["original", "hf-bf16"])
def test_other_layouts(checkpoints, tmp_path, layout):
    artifact = build_onnx(checkpoints[layout], tmp_path / "a", "default", max_context=256)
    assert verify(artifact, checkpoints[layout], "transformers", [1, 33, 130]).passed


@pytest.mark.parametrize("kind", KINDS)
def test_genai_generates_the_same(artifacts, kind):
    """From the folder alone, unchanged."""
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    model = genai.Model(str(artifacts[kind]))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(PROMPT) + 50, min_length=len(PROMPT) + 50)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(PROMPT)
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    stops = load_manifest(artifacts[kind]).stop_tokens
    expected = load(artifacts[kind]).generate(PROMPT, 50, stop_tokens=()).tokens
    assert not set(stops) & set(expected)  # min_length hides stop tokens, and from genai alone
    assert found == expected
