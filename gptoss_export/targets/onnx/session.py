"""model.onnx as a session of onnxruntime, compared with the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artifact.manifest import Manifest
from ...errors import ArtifactError, RunError, raise_all
from .model_files import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    LOGITS_FROM,
    LOGITS_TO,
    SESSION_OPTIONS,
    cache_names,
    model_properties,
)
from .options import Options

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_TYPES = {"float32": "tensor(float)", "bfloat16": "tensor(bfloat16)"}
_NO_ENTRIES: Mapping[str, str] = {}


def open_session(
    path: Path,
    manifest: Manifest,
    options: Options,
    providers: Sequence[Any],
    entries: Mapping[str, str] = _NO_ENTRIES,
) -> InferenceSession:
    """The model at `path`. Raises ArtifactError where onnxruntime refuses it or where it is not the manifest's."""
    session = start_session(path, providers, entries)
    problems = list(_differences(session, manifest, options))
    raise_all(ArtifactError, f"{path}: not the model of the manifest; build the artifact again", problems)
    return session


def start_session(path: Path, providers: Sequence[Any], entries: Mapping[str, str] = _NO_ENTRIES) -> InferenceSession:
    """A session for any model. Raises ArtifactError where onnxruntime refuses it.

    entries: settings of the session besides SESSION_OPTIONS, by onnxruntime's names.
    """
    try:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors; its warnings are about nodes placed on the CPU, which is intended
        for name, value in {**SESSION_OPTIONS, **entries}.items():
            settings.add_session_config_entry(name, value)
        return onnxruntime.InferenceSession(str(path), settings, providers=list(providers))
    except Exception as error:  # onnxruntime's errors share no other base class
        raise ArtifactError(f"{path}: onnxruntime cannot load it: {error}") from None


def _differences(session: InferenceSession, manifest: Manifest, options: Options) -> Iterator[str]:
    config, kind = manifest.model, _TYPES[manifest.dtype]
    names, cache = cache_names(config.num_hidden_layers), (kind, config.num_key_value_heads, config.head_dim)
    ids: tuple[str | int, ...] = ("tensor(int64)",)
    expected_inputs = {INPUT_IDS: ids, ATTENTION_MASK: ids, **{item.past: cache for item in names}}
    expected_outputs = {LOGITS: (kind, config.vocab_size), **{item.present: cache for item in names}}
    expected_defaults = dict.fromkeys((LOGITS_FROM, LOGITS_TO), (*ids, 1))
    for label, items, expected in (
        ("inputs", session.get_inputs(), expected_inputs),
        ("initializers that are inputs", session.get_overridable_initializers(), expected_defaults),
        ("outputs", session.get_outputs(), expected_outputs),
    ):
        found = {item.name: (item.type, *(size for size in item.shape if isinstance(size, int))) for item in items}
        if found != expected:
            wrong = [name for name in found | expected if found.get(name) != expected.get(name)]
            yield f"{label} {', '.join(wrong[:3])}: found {found.get(wrong[0])}, expected {expected.get(wrong[0])}"
    stored = session.get_modelmeta().custom_metadata_map
    for name, value in model_properties(manifest.sizes.max_context, options).items():
        if stored.get(name) != value:
            yield f"{name}: found {stored.get(name)}, expected {value}"


@contextmanager
def run_errors() -> Iterator[None]:
    """Turns what a call of onnxruntime raises into RunError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise RunError(f"onnxruntime failed: {error}") from error
    except Exception as error:  # onnxruntime's own errors share no other base class
        if type(error).__module__.startswith("onnxruntime"):
            raise RunError(f"onnxruntime failed: {error}") from error
        raise
