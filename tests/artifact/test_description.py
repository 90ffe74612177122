"""The description of compiled code, held against a manifest that was changed in every place that code depends on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_export.artifact.description import check_description, describe_code
from gptoss_export.artifact.manifest import Manifest, load_manifest, save_manifest
from gptoss_export.artifact.programs import Sizes, programs_of
from gptoss_export.errors import ArtifactError

FILE = Path("code")


@pytest.fixture(scope="module")
def manifest(uncompiled: Path) -> Manifest:
    return load_manifest(uncompiled)


def described(manifest: Manifest) -> str:
    return describe_code(
        target=manifest.target,
        target_options=manifest.target_options,
        device=manifest.device,
        arch=manifest.arch,
        dtype=manifest.dtype,
        model=manifest.model,
        sizes=manifest.sizes,
        programs=manifest.programs,
    )


def consistent(manifest: Manifest, **changes: Any) -> Manifest:
    """The manifest of another artifact: with the signatures that follow from its model and sizes."""
    changed = dataclasses.replace(manifest, **changes)
    programs = {
        program.name: program.signature(changed.model, changed.sizes, changed.dtype)
        for program in programs_of(changed.sizes, changed.device)
    }
    return dataclasses.replace(changed, programs=programs)


def other_model(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: consistent(manifest, model=dataclasses.replace(manifest.model, **changes))


def other_sizes(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: consistent(manifest, sizes=dataclasses.replace(manifest.sizes, **changes))


def full_layers(manifest: Manifest) -> Manifest:
    return consistent(
        manifest,
        model=dataclasses.replace(manifest.model, layer_types=("full_attention",) * manifest.model.num_hidden_layers),
    )


CHANGES: dict[str, tuple[Callable[[Manifest], Manifest], str]] = {
    "context": (other_sizes(max_context=8800), "sizes.max_context: the code says 4400, the manifest 8800"),
    "batch": (other_sizes(widths=(1, 4)), r"sizes.widths[1]: the code says 3, the manifest 4"),
    "chunks": (other_sizes(prefill_chunks=(16,)), "sizes.prefill_chunks: the code says [16, 64], the manifest [16]"),
    "head_dim": (other_model(head_dim=64), "model.head_dim: the code says 32, the manifest 64"),
    "kv heads": (other_model(num_key_value_heads=1), "model.num_key_value_heads: the code says 2, the manifest 1"),
    "layers": (
        other_model(num_hidden_layers=2, layer_types=("sliding_attention", "full_attention")),
        "model.num_hidden",
    ),
    "layer types": (
        full_layers,
        "model.layer_types[0]: the code says 'sliding_attention', the manifest 'full_attention",
    ),
    "window": (other_model(sliding_window=64), "model.sliding_window: the code says 32, the manifest 64"),
    "vocabulary": (other_model(vocab_size=1024), "model.vocab_size: the code says 512, the manifest 1024"),
    "experts": (other_model(num_local_experts=4), "model.num_local_experts: the code says 8, the manifest 4"),
    "choices": (other_model(num_experts_per_tok=1), "model.num_experts_per_tok: the code says"),
    "eps": (other_model(rms_norm_eps=1e-6), "model.rms_norm_eps: the code says 1e-05, the manifest 1e-06"),
    "rope": (other_model(rope=None), "model.rope: the code says {"),
    "dtype": (lambda manifest: consistent(manifest, dtype="bfloat16"), "dtype: the code says 'float32'"),
    "device": (lambda manifest: dataclasses.replace(manifest, device="cuda"), "device: the code says 'cpu'"),
    "target": (lambda manifest: dataclasses.replace(manifest, target="other"), "target: the code says 'aoti'"),
    "option": (
        lambda manifest: dataclasses.replace(manifest, target_options={"cpu_isa": "avx2"}),
        "target_options.cpu_isa: the code says None, the manifest 'avx2'",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_manifest_of_another_artifact_is_named(manifest: Manifest, change: str) -> None:
    changed, message = CHANGES[change][0](manifest), CHANGES[change][1]
    with pytest.raises(ArtifactError) as caught:
        check_description(changed, manifest.arch, described(manifest), FILE)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 4000


def test_every_value_of_the_model_and_of_the_sizes_is_compared(manifest: Manifest) -> None:
    found = json.loads(described(manifest))
    assert found["model"] == json.loads(json.dumps(manifest.model.to_json()))
    names = {field.name for field in dataclasses.fields(Sizes)}
    assert found["sizes"].keys() == names - {"adapter_slots", "adapter_rank"}  # as artifacts had before there were any
    with_adapters = dataclasses.replace(manifest.sizes, adapter_slots=2, adapter_rank=4)
    assert json.loads(described(dataclasses.replace(manifest, sizes=with_adapters)))["sizes"].keys() == names
    signature = manifest.programs["decode_3"]
    assert [item["name"] for item in found["programs"]["decode_3"]["inputs"]] == [
        item.name for item in signature.inputs
    ]
    assert len(found["programs"]["decode_3"]["outputs"]) == len(signature.outputs)


def test_the_description_of_a_manifest_that_was_written_and_read_is_the_same(
    manifest: Manifest, tmp_path: Path
) -> None:
    save_manifest(manifest, tmp_path)
    check_description(load_manifest(tmp_path), manifest.arch, described(manifest), FILE)


def test_another_arch_is_named(manifest: Manifest) -> None:
    with pytest.raises(ArtifactError, match="arch: the code says"):
        check_description(manifest, "sm_90", described(manifest), FILE)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "does not say what it was compiled for; build the artifact again"),
        (b"", "cannot be read as JSON"),
        (b"[]", "holds a list, expected an object"),
        (b"{}", "target: the code says nothing, the manifest 'aoti'"),
        (b'{"format": 99}', "format: the code says 99, the manifest 1"),
        (b'{"format": 1, "format": 1}', "twice"),
    ],
)
def test_no_description_or_a_broken_one_is_an_error(manifest: Manifest, found: bytes | None, message: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        check_description(manifest, manifest.arch, found, FILE)
    assert message in str(caught.value)
