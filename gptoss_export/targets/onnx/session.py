"""model.onnx as a session of onnxruntime, held against the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import ArtifactError, RunError, raise_all
from ...artifact.manifest import Manifest
from .compile import LOGITS_FROM, LOGITS_TO, SESSION_OPTIONS, facts

_TYPES = {"float32": "tensor(float)", "bfloat16": "tensor(bfloat16)"}


def cache_names(manifest: Manifest) -> list[str]:
    """The inputs of the model that are caches."""
    return [f"past_key_values.{layer}.{kind}" for layer in range(manifest.model.num_hidden_layers) for kind in ("key", "value")]


def present(name: str) -> str:
    """The output that goes on with the cache of an input."""
    return name.replace("past_key_values", "present")


def open_session(manifest: Manifest, path: Path, providers: Sequence[Any], more: Mapping[str, str] | None = None) -> Any:
    """The model at `path`. Raises ArtifactError where onnxruntime refuses it or it is not the manifest's."""
    session = start_session(path, providers, more)
    problems = list(_differences(session, manifest))
    raise_all(ArtifactError, f"{path}: not the model of the manifest; build the artifact again", problems)
    return session


def start_session(path: Path, providers: Sequence[Any], more: Mapping[str, str] | None = None) -> Any:
    """A session for any model. Raises ArtifactError where onnxruntime refuses it."""
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; what it warns of is where nodes were placed, as was meant
        for name, value in (SESSION_OPTIONS | dict(more or {})).items():
            options.add_session_config_entry(name, value)
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime's have no common kind but this
        raise ArtifactError(f"{path}: onnxruntime cannot load it: {error}") from None


def _differences(session: Any, manifest: Manifest) -> Iterator[str]:
    config, names, kind = manifest.model, cache_names(manifest), _TYPES[manifest.dtype]
    cache = kind, config.num_key_value_heads, config.head_dim
    wanted = dict.fromkeys((LOGITS_FROM, LOGITS_TO), ("tensor(int64)", 1))
    inputs = {"input_ids": ("tensor(int64)",), "attention_mask": ("tensor(int64)",)} | dict.fromkeys(names, cache)
    outputs = {"logits": (kind, config.vocab_size)} | dict.fromkeys(map(present, names), cache)
    for label, found, expected in (
        ("inputs", session.get_inputs(), inputs),
        ("initializers that are inputs", session.get_overridable_initializers(), wanted),
        ("outputs", session.get_outputs(), outputs),
    ):
        told = {item.name: (item.type, *(size for size in item.shape if isinstance(size, int))) for item in found}
        if told != expected:
            wrong = [name for name in told | expected if told.get(name) != expected.get(name)]
            yield f"{label} {', '.join(wrong[:3])}: found {told.get(wrong[0])}, expected {expected.get(wrong[0])}"
    said, expected = session.get_modelmeta().custom_metadata_map, facts(manifest.max_context, manifest.arch)
    yield from (f"{name}: found {said.get(name)}, expected {value}" for name, value in expected.items() if said.get(name) != value)


@contextmanager
def failures() -> Iterator[None]:
    """What a call of onnxruntime raises, as RunError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise RunError(f"onnxruntime failed: {error}") from error
    except Exception as error:  # onnxruntime's own kinds, which have no base but this
        if type(error).__module__.startswith("onnxruntime"):
            raise RunError(f"onnxruntime failed: {error}") from error
        raise
