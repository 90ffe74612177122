"""manifest.json: what is in an artifact. Both ends of the format are in this file.

The manifest alone tells how to run the artifact: the model's shape, for which target, device and archs it
was compiled, each program's inputs in order, each weight's shape and the stored tensors it is made of,
the size and sha256 of every file, and the versions that built it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..model.config import ModelConfig, violations
from ..errors import ArtifactError, raise_all
from .atomic_folder import PARTIAL
from ..model.kv_cache import CacheShape

DTYPES = ("float32", "bfloat16", "uint8", "int64")
DEVICES = ("cpu", "cuda")
COMPUTED = ("float32", "bfloat16")  # dtypes of an artifact
SCHEMA_VERSION = 4
NAME = "manifest.json"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a program. role: "data", "cache" (read and written) or "weight"."""

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ProgramSpec:
    """The call of a program: inputs and outputs in order, contiguous."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Part:
    """A stored tensor: its name within a safetensors file of the artifact."""

    file: str
    tensor: str


@dataclass(frozen=True)
class WeightSpec:
    """A weight is its parts, concatenated along the first dimension and converted to `dtype`."""

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class FileSpec:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Provenance:
    """Where an artifact comes from.

    machine: platform.machine() of the host, for which the host's part of the code is; system: its name; gpu: that it had,
    or None; options: of the build, as given; source_sha256: of the checkpoint's files, by `source_hash`; kernels: for each
    arch the tables that say how a kernel of the programs is cut, none where all are cut by their own guess.
    """

    machine: str
    system: str
    gpu: str | None
    options: dict[str, Any]
    source_sha256: str
    kernels: dict[str, list[str]]


@dataclass(frozen=True)
class Manifest:
    target: str
    device: str
    archs: tuple[str, ...]
    dtype: str
    model: ModelConfig
    max_batch: int
    max_context: int
    prefill_chunks: tuple[int, ...]
    stop_tokens: tuple[int, ...]
    programs: dict[str, ProgramSpec]
    weights: dict[str, WeightSpec]
    files: dict[str, FileSpec]
    versions: dict[str, str]
    source: str
    provenance: Provenance
    schema_version: int = SCHEMA_VERSION

    @property
    def arch(self) -> str:
        """The archs that it has code for, as `build --arch` takes them; of most targets, the one."""
        return ",".join(self.archs)

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": self.schema_version} | dataclasses.asdict(self) | {"model": self.model.to_json()}


def save_manifest(manifest: Manifest, folder: Path) -> None:
    (folder / NAME).write_text(json.dumps(manifest.to_json(), indent=1) + "\n")


def load_manifest(folder: Path) -> Manifest:
    """Read `folder`/manifest.json. Raises ArtifactError where it is missing, broken or of another schema."""
    path = folder / NAME
    if folder.resolve().name.endswith(PARTIAL):
        raise ArtifactError(f"{folder}: left behind by a build that was killed; remove it and build again")
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: not a folder; expected an artifact made by `gptoss-export build`")
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: not found; {folder} is no artifact, or an incomplete one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}); build the artifact again") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema_version is {version!r}, this gptoss-export reads {SCHEMA_VERSION}; "
            "build the artifact again or install the version that made it"
        )
    try:
        manifest = _parse(data)
        problems = violations(manifest.model) or list(_violations(manifest))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"{path}: malformed ({type(error).__name__}: {error}); build the artifact again") from None
    raise_all(ArtifactError, f"{path}: contradicts itself; build the artifact again", problems)
    return manifest


def _parse(data: dict[str, Any]) -> Manifest:
    def tensor(spec: dict[str, Any]) -> TensorSpec:
        return TensorSpec(**spec | {"shape": tuple(spec["shape"])})

    def weight(spec: dict[str, Any]) -> WeightSpec:
        parts = tuple(Part(**part) for part in spec["parts"])
        return WeightSpec(tuple(spec["shape"]), spec["dtype"], parts)

    fields = dict(data)
    fields["model"] = ModelConfig.from_json(data["model"])
    fields["archs"] = tuple(data["archs"])
    fields["prefill_chunks"] = tuple(data["prefill_chunks"])
    fields["stop_tokens"] = tuple(data["stop_tokens"])
    fields["programs"] = {
        name: ProgramSpec(tuple(map(tensor, spec["inputs"])), tuple(map(tensor, spec["outputs"])))
        for name, spec in data["programs"].items()
    }
    fields["weights"] = {name: weight(spec) for name, spec in data["weights"].items()}
    fields["provenance"] = Provenance(**data["provenance"])
    fields["files"] = {name: FileSpec(**spec) for name, spec in data["files"].items()}
    return Manifest(**fields)


def _violations(manifest: Manifest) -> Iterator[str]:
    """What no build writes. Compiled code checks no shapes, so everything it is called with is checked here."""
    for name in ("target", "device", "dtype", "source"):
        if not isinstance(value := getattr(manifest, name), str):
            yield f"{name}: found {value!r}, expected a string"
    if not manifest.archs or not all(isinstance(arch, str) for arch in manifest.archs):
        yield f"archs: found {manifest.archs!r}, expected strings"
    if not isinstance(manifest.provenance.machine, str):
        yield f"provenance: machine: found {manifest.provenance.machine!r}, expected a string"
    kernels = manifest.provenance.kernels
    if not isinstance(kernels, dict) or not all(
        isinstance(tables, list) and all(isinstance(table, str) for table in tables) for tables in kernels.values()
    ):
        yield f"provenance: kernels: found {kernels!r}, expected lists of strings by arch"
    if manifest.device not in DEVICES:
        yield f"device: found {manifest.device!r}, expected {' or '.join(DEVICES)}"
    if manifest.dtype not in COMPUTED:
        yield f"dtype: found {manifest.dtype!r}, expected {' or '.join(COMPUTED)}"
    sizes = {"max_batch": (manifest.max_batch,), "max_context": (manifest.max_context,)}
    sizes["prefill_chunks"] = manifest.prefill_chunks
    for name, values in sizes.items():
        if not values or not all(type(value) is int and value > 0 for value in values):
            yield f"{name}: found {values}, expected whole numbers above 0"
            return
    if not all(type(token) is int and 0 <= token < manifest.model.vocab_size for token in manifest.stop_tokens):
        yield f"stop_tokens: found {manifest.stop_tokens}, expected token ids"
    if not isinstance(manifest.versions.get("torch"), str):
        yield "versions: torch is missing"
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield f"files: {name!r} is outside of the artifact"
    for name, weight in manifest.weights.items():
        if weight.dtype not in DTYPES:
            yield f"weight {name}: dtype {weight.dtype!r}, expected one of {', '.join(DTYPES)}"
        if not weight.parts:
            yield f"weight {name}: has no parts"
        for part in weight.parts:
            if part.file not in manifest.files:
                yield f"weight {name}: {part.file!r} is not among the files"
    yield from _program_violations(manifest)


def _program_violations(manifest: Manifest) -> Iterator[str]:
    """The call of every program is what export.py makes: data, caches, then weights (which the runner compares)."""
    if not manifest.programs:  # one model, which tells its inputs by itself
        return
    rows = {"decode": manifest.max_batch} | {f"prefill_{chunk}": chunk for chunk in manifest.prefill_chunks}
    for name in manifest.programs:
        count = name.removeprefix("unembed_")
        if count != name and count.isdecimal() and int(count) > 0:
            rows[name] = int(count)
    if manifest.programs.keys() != rows.keys() or "unembed_1" not in rows:
        yield f"programs: found {', '.join(manifest.programs)}, expected {', '.join(rows)} and unembed_1"
        return
    for name, count in rows.items():
        program, kind = manifest.programs[name], name.partition("_")[0]
        weights = [item for item in program.inputs if item.role == "weight"]
        others = program.inputs[: len(program.inputs) - len(weights)]
        yield from _differences(f"program {name}: inputs", others, _inputs(manifest, kind, count))
        yield from _differences(f"program {name}: outputs", program.outputs, _outputs(manifest, kind, count))
        for item in weights:
            if item.dtype not in DTYPES:
                yield f"program {name}: weight {item.name} has dtype {item.dtype!r}, expected one of {', '.join(DTYPES)}"


def _inputs(manifest: Manifest, kind: str, rows: int) -> list[TensorSpec]:
    """The data and caches that a program of `rows` rows takes."""
    if kind == "unembed":
        return [TensorSpec("hidden", "data", (rows, manifest.model.hidden_size), "float32")]
    lengths = {"tokens": rows, "positions": rows, "slots": rows if kind == "decode" else 1}
    data = [TensorSpec(name, "data", (length,), "int64") for name, length in lengths.items()]
    shape = CacheShape(manifest.max_batch, manifest.max_context, max(manifest.prefill_chunks))
    return data + [
        TensorSpec(f"{half}_cache.{layer}", "cache", shape.tensor(manifest.model, layer), manifest.dtype)
        for layer in range(manifest.model.num_hidden_layers)
        for half in "kv"
    ]


def _outputs(manifest: Manifest, kind: str, rows: int) -> list[TensorSpec]:
    if kind == "prefill":
        return [TensorSpec("hidden", "data", (rows, manifest.model.hidden_size), "float32")]
    choice = {"top": "int64", "top_logprob": "float32", "log_total": "float32"}
    logits = TensorSpec("logits", "data", (rows, manifest.model.vocab_size), "float32")
    return [logits, *(TensorSpec(name, "data", (rows,), dtype) for name, dtype in choice.items())]


def _differences(told: str, found: Sequence[TensorSpec], expected: Sequence[TensorSpec]) -> Iterator[str]:
    """Where the call is another one; the first difference stands for those of all layers."""
    for index in range(max(len(found), len(expected))):
        here = found[index].name if index < len(found) else "the end"
        there = expected[index].name if index < len(expected) else "the end"
        if here != there:
            yield f"{told} are others, or in another order: found {here!r} at place {index}, expected {there!r}"
            return
    wrong = [pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1]]
    if wrong:
        first, wanted = wrong[0]
        names = ", ".join(item.name for item, _ in wrong)
        yield (
            f"{told} {names} are not of this model's and artifact's sizes: {first.name} is {_spell(first)}, "
            f"expected {_spell(wanted)}"
        )


def _spell(item: TensorSpec) -> str:
    return f"{item.role} {item.dtype} {list(item.shape)}"


def describe_file(path: Path) -> FileSpec:
    """Size and sha256 of a file."""
    with path.open("rb") as stream:
        return FileSpec(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())


def source_hash(files: Mapping[str, FileSpec]) -> str:
    """sha256 of lines `<sha256>  <name>`, by name, as sha256sum writes them."""
    lines = "".join(f"{spec.sha256}  {name}\n" for name, spec in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def weight_files(manifest: Manifest) -> list[str]:
    """The files that hold weights, in whatever layout, which are nearly all of an artifact's bytes."""
    return sorted(name for name in manifest.files if name.endswith(".safetensors"))


def check_files(manifest: Manifest, folder: Path) -> None:
    """Raise ArtifactError naming every file that is missing or of another size."""
    problems = []
    for name, spec in manifest.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif (size := path.stat().st_size) != spec.bytes:
            problems.append(f"{name}: {size} bytes, expected {spec.bytes}")
    raise_all(ArtifactError, f"{folder}: not the files that were built", problems)


def check_hashes(manifest: Manifest, folder: Path, names: Iterable[str]) -> None:
    """Read files of the manifest and raise ArtifactError naming every one whose sha256 is another."""
    from concurrent.futures import ThreadPoolExecutor

    names = list(names)
    with ThreadPoolExecutor() as pool:
        found = zip(names, pool.map(describe_file, [folder / name for name in names]), strict=True)
        problems = [
            f"{name}: sha256 {spec.sha256[:12]}..., expected {manifest.files[name].sha256[:12]}..."
            for name, spec in found
            if spec.sha256 != manifest.files[name].sha256
        ]
    raise_all(ArtifactError, f"{folder}: not the files that were built", problems)
