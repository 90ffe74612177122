"""model.onnx as a session of onnxruntime, compared with the manifest.

onnxruntime checks little of what it opens: it reads the data of a tensor from any file below the model's folder. So the
bytes of a model are read once, compared with the manifest (check.py), and given to onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artifact.manifest import Manifest
from ...errors import ArtifactError, RunError, raise_all
from .check import check_closed, check_model, read_code
from .model_files import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    LOGITS_FROM,
    LOGITS_TO,
    SESSION_OPTIONS,
    cache_names,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_TYPES = {"float32": "tensor(float)", "bfloat16": "tensor(bfloat16)"}
_NO_ENTRIES: Mapping[str, str] = {}


def open_session(
    path: Path, manifest: Manifest, providers: Sequence[Any], entries: Mapping[str, str] = _NO_ENTRIES
) -> InferenceSession:
    """The model at `path`, a file of the artifact. Raises ArtifactError where onnxruntime refuses it or where it is not
    the manifest's."""
    data = read_code(path)
    check_model(path, data, manifest)
    session = _start(path, data, providers, entries)
    problems = list(differences(session, manifest))
    raise_all(ArtifactError, f"{path}: not the model of the manifest; build the artifact again", problems)
    return session


def open_closed_model(path: Path, providers: Sequence[Any]) -> InferenceSession:
    """A session for a model that reads no other file. Raises ArtifactError where it does, and where onnxruntime refuses
    it."""
    data = read_code(path)
    check_closed(path, data)
    return _start(path, data, providers, {})


def _start(path: Path, data: bytes, providers: Sequence[Any], entries: Mapping[str, str]) -> InferenceSession:
    """A session for the model whose bytes are `data`. Raises ArtifactError where onnxruntime refuses it.

    entries: settings of the session besides SESSION_OPTIONS, by onnxruntime's names.
    """
    folder = {"session.model_external_initializers_file_folder_path": str(path.parent)}
    try:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # an error is raised as well; warnings are about what is intended
        for name, value in {**SESSION_OPTIONS, **folder, **entries}.items():
            settings.add_session_config_entry(name, value)
        return onnxruntime.InferenceSession(data, settings, providers=list(providers))
    except Exception as error:  # onnxruntime's errors share no other base class
        raise ArtifactError(f"{path}: onnxruntime cannot load it: {error}") from None


def differences(session: InferenceSession, manifest: Manifest) -> Iterator[str]:
    """Where the inputs and outputs are not those that a build writes (export.py). A size that a call chooses has a
    name."""
    config, kind, integers = manifest.model, _TYPES[manifest.dtype], "tensor(int64)"
    names = cache_names(config.num_hidden_layers)

    def cache(tokens: str) -> tuple[str | int, ...]:
        return kind, "batch", config.num_key_value_heads, tokens, config.head_dim

    expected_inputs = {item.past: cache("past") for item in names}
    expected_inputs |= {INPUT_IDS: (integers, "batch", "new"), ATTENTION_MASK: (integers, "batch", "total")}
    expected_outputs = {item.present: cache("present") for item in names}
    expected_outputs[LOGITS] = (kind, "batch", "wanted", config.vocab_size)
    expected_defaults = dict.fromkeys((LOGITS_FROM, LOGITS_TO), (integers, 1))
    for label, items, expected in (
        ("inputs", session.get_inputs(), expected_inputs),
        ("initializers that are inputs", session.get_overridable_initializers(), expected_defaults),
        ("outputs", session.get_outputs(), expected_outputs),
    ):
        found = {item.name: (item.type, *item.shape) for item in items}
        if found != expected:
            wrong = [name for name in found | expected if found.get(name) != expected.get(name)]
            yield f"{label} {', '.join(wrong[:3])}: found {found.get(wrong[0])}, expected {expected.get(wrong[0])}"


@contextmanager
def run_errors() -> Iterator[None]:
    """Turns what a call of onnxruntime, and the arrays around it, raise into RunError. Also a decorator."""
    try:
        yield
    except MemoryError as error:
        said = f" ({error})" if str(error) else ""
        raise RunError(
            f"too little memory for this call{said}; end other programs that use it, or build with smaller sizes "
            "(--max-batch, --max-context, --prefill-chunk)"
        ) from error
    except RuntimeError as error:
        raise RunError(f"onnxruntime failed: {error}") from error
    except Exception as error:  # onnxruntime's own errors share no other base class
        if type(error).__module__.startswith("onnxruntime"):
            raise RunError(f"onnxruntime failed: {error}") from error
        raise
