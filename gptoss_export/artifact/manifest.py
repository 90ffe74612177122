"""manifest.json: what an artifact holds. Reading and writing the format are both in this file.

The manifest alone says how to run the artifact: the model's config, the target, device and archs of its code, the
signature of each program, the stored tensors of each weight, the size and sha256 of each file, and the versions that
built it. SCHEMA_VERSION goes up with every change after which an older reader, or an older artifact, would be misread.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ArtifactError, raise_all
from ..json_file import elements, members, read_object
from ..machine_limits import writes
from ..model.adapter_factors import LARGEST_RANK, MOST_ADAPTERS
from ..model.config import ModelConfig, violations
from ..model.parameters import parameters
from ..model.ranks import MOST_RANKS, RankConfig, division_problems, program_configs, rank_configs
from ..model.training.lora import Training, training_problems
from ..values import shown
from .atomic_folder import PARTIAL
from .call_differences import signature_differences
from .calls import Role, Signature, TensorSpec
from .files import PIECE, FileSpec
from .programs import Program, Sizes, programs_of

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16")  # what an artifact can compute in
SCHEMA_VERSION = 15
NAME = "manifest.json"
_SHA256 = re.compile("[0-9a-f]{64}")
# Names in a manifest that are not those of the option; "tables" is in schema 4 and earlier.
_OPTION_NAMES = {"prefill_chunks": "prefill-chunk", "stop_tokens": "stop-token", "tables": "tuned-configs"}


@dataclass(frozen=True)
class Part:
    """A stored tensor: its name in a safetensors file of the artifact."""

    file: str
    tensor: str


@dataclass(frozen=True)
class WeightSpec:
    """A weight: its parts, concatenated along the first dimension and converted to `dtype`."""

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Provenance:
    """Where an artifact comes from.

    machine        platform.machine() of the host that the host's part of the code is for
    system         name and release of the building system
    gpu            the GPU of the building machine, or None
    options        the options of the build, every default filled in
    source_sha256  of the checkpoint's files (`files.combined_hash`)
    tuned_configs  for each arch the labels of the tuned configs that its kernels use
    """

    machine: str
    system: str
    gpu: str | None
    options: dict[str, Any]
    source_sha256: str
    tuned_configs: dict[str, list[str]]


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    programs  empty where the target compiles no programs but a model of its own. Where ranks share the model: the
              programs of a rank, and behind `@` the first rank that runs it: `decode_1@0`
    """

    target: str
    target_options: dict[str, Any]
    device: str
    archs: tuple[str, ...]
    dtype: str
    model: ModelConfig
    sizes: Sizes
    stop_tokens: tuple[int, ...]
    programs: dict[str, Signature]
    weights: dict[str, WeightSpec]
    files: dict[str, FileSpec]
    versions: dict[str, str]
    source: str
    provenance: Provenance
    schema_version: int = SCHEMA_VERSION

    @property
    def arch(self) -> str:
        """The archs that the artifact has code for, as `build --arch` takes them."""
        return ",".join(self.archs)

    def to_json(self) -> dict[str, Any]:
        own = {"model": self.model.to_json(), "sizes": self.sizes.to_json()}
        return {"schema_version": self.schema_version} | dataclasses.asdict(self) | own

    def of_rank(self, rank: int) -> Manifest:
        """What one rank runs: its part of the model, and the programs for it under their own names. The weights are
        those of the whole model."""
        if self.sizes.ranks == 1:
            return self
        config = rank_configs(self.model, self.sizes.sharing)[rank]
        behind = program_suffix(config)
        programs = {name.removesuffix(behind): found for name, found in self.programs.items() if name.endswith(behind)}
        return dataclasses.replace(self, model=config, programs=programs)

    def weight_files(self) -> list[str]:
        """The files that hold weights: nearly all bytes of the artifact."""
        return sorted(name for name in self.files if name.endswith(".safetensors"))

    def missing_programs(self, expected: Iterable[Program]) -> list[str]:
        """Names of the expected programs that the artifact does not have."""
        wanted = signatures(expected, self.model, self.sizes, self.dtype)
        return [name for name in wanted if name not in self.programs]


def save_manifest(manifest: Manifest, folder: Path) -> bytes:
    """Write `folder`/manifest.json; returns its bytes, which a signature covers."""
    data = (json.dumps(manifest.to_json(), indent=1) + "\n").encode("utf-8")
    with writes(folder / NAME):
        (folder / NAME).write_bytes(data)
    return data


def load_manifest(folder: Path, check: Callable[[bytes], object] | None = None) -> Manifest:
    """Read `folder`/manifest.json, once.

    check  called with its bytes before they are parsed (`signature.signature_check`); what it raises is passed on

    Raises ArtifactError where it is missing, broken, of another schema, or contradicts itself.
    """
    path = folder / NAME
    if os.path.realpath(folder).endswith(PARTIAL):  # Path.resolve fails on a link that leads to itself
        raise ArtifactError(f"{folder}: a killed build left this folder behind; remove it and build again")
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: not a folder; expected an artifact made by `gptoss-export build`")
    data = read_object(
        path,
        ArtifactError,
        missing=f"not found; {folder} is no artifact, or an incomplete one",
        advice="build the artifact again",
        check=check,
    )
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema_version is {version!r}, expected {SCHEMA_VERSION}; build the artifact again: "
            f"{rebuild_command(data, folder)}"
        )
    try:
        manifest = _parse(data)
        problems = violations(manifest.model) or list(_violations(manifest))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"{path}: malformed ({type(error).__name__}: {error}); build the artifact again") from None
    raise_all(ArtifactError, f"{path}: contradicts itself; build the artifact again", problems)
    return manifest


def rebuild_command(data: Mapping[str, Any], folder: Path) -> str:
    """The command that builds an artifact again with the same options, from its manifest of any schema."""
    provenance = data.get("provenance")
    options = provenance.get("options") if isinstance(provenance, dict) else None
    words = ["gptoss-export", "build", "CHECKPOINT", "-o", f"{folder}-new"]
    for name, value in (options if isinstance(options, dict) else {}).items():
        option = "--" + _OPTION_NAMES.get(name, name.replace("_", "-"))
        if name == "arch" and value == "portable":  # until schema 4 an arch, since then an option of its own
            words.append("--portable")
        elif name == "widths" and isinstance(value, list):  # one option for all of them
            words += [option, ",".join(map(str, value))]
        elif isinstance(value, list):
            words += [word for item in value for word in (option, str(item))]
        elif isinstance(value, bool):
            words += [option] if value else []
        elif isinstance(value, str | int):
            words += [option, str(value)]
    return shlex.join(words)


def _parse(data: dict[str, Any]) -> Manifest:
    def tensor(spec: dict[str, Any]) -> TensorSpec:
        name, role, shape, dtype = members(spec, "name", "role", "shape", "dtype")
        return TensorSpec(name, Role(role), elements(shape), dtype)

    def signature(spec: dict[str, Any]) -> Signature:
        inputs, outputs = members(spec, "inputs", "outputs")
        return Signature(tuple(map(tensor, elements(inputs))), tuple(map(tensor, elements(outputs))))

    def weight(spec: dict[str, Any]) -> WeightSpec:
        shape, dtype, parts = members(spec, "shape", "dtype", "parts")
        return WeightSpec(elements(shape), dtype, tuple(Part(**part) for part in elements(parts)))

    def training(spec: dict[str, Any] | None) -> Training | None:
        if spec is None:
            return None
        tokens, rank, alpha, targets, recompute = members(spec, "tokens", "rank", "alpha", "targets", "recompute")
        return Training(tokens, rank, alpha, elements(targets), recompute)

    names = "widths", "max_context", "prefill_chunks", "ranks", "expert_parallel", "training"
    sizes = {"adapter_slots": 0, "adapter_rank": 0} | data["sizes"]  # which leaves them out where there are none
    widths, max_context, chunks, ranks, by_expert, trained, *adapters = members(
        sizes, *names, "adapter_slots", "adapter_rank"
    )
    given = elements(widths), max_context, elements(chunks), ranks, by_expert, training(trained), *adapters
    fields: dict[str, Any] = dict(data) | {
        "model": ModelConfig.from_json(data["model"]),
        "archs": elements(data["archs"]),
        "sizes": Sizes(*given),
        "stop_tokens": elements(data["stop_tokens"]),
        "programs": {name: signature(spec) for name, spec in data["programs"].items()},
        "weights": {name: weight(spec) for name, spec in data["weights"].items()},
        "provenance": Provenance(**data["provenance"]),
        "files": {name: _file(spec) for name, spec in data["files"].items()},
    }
    return Manifest(**fields)


def _file(data: Mapping[str, Any]) -> FileSpec:
    return FileSpec(**{**data, "pieces": elements(data.get("pieces", []))})


def _violations(manifest: Manifest) -> Iterator[str]:
    """What no build writes. Compiled code checks no shapes, so everything it is called with is checked here."""
    problems = [*_kind_violations(manifest), *_size_violations(manifest)]
    yield from problems
    yield from _file_violations(manifest)
    if not problems:  # the signatures follow from what was just checked
        yield from _weight_violations(manifest)
        yield from _program_violations(manifest)


def _kind_violations(manifest: Manifest) -> Iterator[str]:
    for name in ("target", "device", "dtype", "source"):
        if not isinstance(value := getattr(manifest, name), str):
            yield f"{name}: found {value!r}, expected a string"
    if not isinstance(manifest.target_options, dict):
        yield f"target_options: found {manifest.target_options!r}, expected an object"
    if not manifest.archs or not all(isinstance(arch, str) for arch in manifest.archs):
        yield f"archs: found {manifest.archs!r}, expected strings"
    if manifest.device not in DEVICES:
        yield f"device: found {manifest.device!r}, expected {' or '.join(DEVICES)}"
    if manifest.dtype not in DTYPES:
        yield f"dtype: found {manifest.dtype!r}, expected {' or '.join(DTYPES)}"
    if not isinstance(manifest.versions.get("torch"), str):
        yield "versions: torch is missing"
    for name, version in manifest.versions.items():
        if not isinstance(version, str):
            yield f"versions.{name}: found {shown(version)}, expected a string"
    origin = manifest.provenance
    for name, kind, expected in (
        ("machine", str, "a string"),
        ("system", str, "a string"),
        ("gpu", str | None, "a string or null"),
        ("options", dict, "an object"),
        ("source_sha256", str, "a string"),
    ):
        if not isinstance(value := getattr(origin, name), kind):
            yield f"provenance.{name}: found {shown(value)}, expected {expected}"
    tuned = origin.tuned_configs
    if not isinstance(tuned, dict) or not all(
        isinstance(labels, list) and all(isinstance(label, str) for label in labels) for labels in tuned.values()
    ):
        yield f"provenance.tuned_configs: found {tuned!r}, expected lists of strings by arch"


def _size_violations(manifest: Manifest) -> Iterator[str]:
    sizes = manifest.sizes
    for name, values in {
        "widths": sizes.widths,
        "max_context": (sizes.max_context,),
        "prefill_chunks": sizes.prefill_chunks,
    }.items():
        if not values or not all(type(value) is int and value > 0 for value in values):
            yield f"sizes.{name}: found {values}, expected whole numbers above 0"
        elif any(later <= earlier for earlier, later in pairwise(values)):
            yield f"sizes.{name}: found {values}, expected ascending numbers"
    if not isinstance(sizes.expert_parallel, bool):
        yield f"sizes.expert_parallel: found {shown(sizes.expert_parallel)}, expected true or false"
    elif type(sizes.ranks) is not int or not 1 <= sizes.ranks <= MOST_RANKS:
        yield f"sizes.ranks: found {shown(sizes.ranks)}, expected 1 to {MOST_RANKS}"
    elif sizes.ranks > 1:
        yield from (
            f"sizes.ranks: {sizes.ranks} cannot share the model: {line}"
            for line in division_problems(manifest.model, sizes.sharing)
        )
    if sizes.training is not None:
        yield from (f"sizes.training.{problem}" for problem in training_problems(sizes.training))
        if sizes.ranks != 1:
            yield f"sizes.ranks: found {shown(sizes.ranks)}, expected 1 for a training step"
    yield from _adapter_violations(sizes)
    if not all(type(token) is int and 0 <= token < manifest.model.vocab_size for token in manifest.stop_tokens):
        yield f"stop_tokens: found {manifest.stop_tokens}, expected token ids"


def _adapter_violations(sizes: Sizes) -> Iterator[str]:
    if (sizes.adapter_slots, sizes.adapter_rank) == (0, 0):
        return
    for name, most in ("adapter_slots", MOST_ADAPTERS), ("adapter_rank", LARGEST_RANK):
        value = getattr(sizes, name)
        if type(value) is not int or not 1 <= value <= most:
            yield f"sizes.{name}: found {shown(value)}, expected 1 to {most}"
    if sizes.ranks != 1:
        yield f"sizes.adapter_slots: found {shown(sizes.adapter_slots)} with several ranks, expected 0"


def _file_violations(manifest: Manifest) -> Iterator[str]:
    for name, spec in manifest.files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield f"files: {name!r} is outside of the artifact"
        if type(spec.bytes) is not int or spec.bytes < 0:
            yield f"files: {name!r} has {shown(spec.bytes)} bytes, expected a whole number of 0 or more"
        if not isinstance(spec.sha256, str) or _SHA256.fullmatch(spec.sha256) is None:
            yield f"files: {name!r} has the sha256 {shown(spec.sha256)}, expected 64 hexadecimal digits in lower case"
        wrong = [piece for piece in spec.pieces if not isinstance(piece, str) or _SHA256.fullmatch(piece) is None]
        expected = -(-spec.bytes // PIECE) if type(spec.bytes) is int and spec.bytes > PIECE else 0
        if wrong or len(spec.pieces) != expected:
            found = shown(wrong[0]) if wrong else f"{len(spec.pieces)} hashes"
            yield f"files: {name!r} has {found} of pieces, expected {expected} of {PIECE} bytes, 64 digits each"
    for name, weight in manifest.weights.items():
        if not weight.parts:
            yield f"weight {name}: has no parts"
        for part in weight.parts:
            if part.file not in manifest.files:
                yield f"weight {name}: {part.file!r} is not among the files"


def _weight_violations(manifest: Manifest) -> Iterator[str]:
    expected = {item.name: item for item in parameters(manifest.model, manifest.dtype)}
    yield from (f"weight {name}: missing" for name in expected if name not in manifest.weights)
    for name, weight in manifest.weights.items():
        if name not in expected:
            yield f"weight {name}: the model has no parameter of that name"
        elif (weight.shape, weight.dtype) != (expected[name].shape, expected[name].dtype):
            wanted = f"{expected[name].dtype} {list(expected[name].shape)}"
            yield f"weight {name}: is {weight.dtype} {list(weight.shape)}, expected {wanted} by the model"


def _program_violations(manifest: Manifest) -> Iterator[str]:
    known = signatures(programs_of(manifest.sizes, manifest.device), manifest.model, manifest.sizes, manifest.dtype)
    for name, signature in manifest.programs.items():
        if name not in known:
            yield f"programs: found {name}, expected {', '.join(known)}"
        else:
            yield from signature_differences(name, signature, known[name])


def program_suffix(config: ModelConfig) -> str:
    """What stands behind the names of programs in a manifest: of several ranks, the first that runs them."""
    return f"@{config.program_rank}" if isinstance(config, RankConfig) else ""


def signatures(programs: Iterable[Program], model: ModelConfig, sizes: Sizes, dtype: str) -> dict[str, Signature]:
    """The calls of an artifact's programs, under the names that they have in its manifest."""
    listed = list(programs)
    return {
        f"{program.name}{program_suffix(config)}": program.signature(config, sizes, dtype)
        for config in program_configs(model, sizes.sharing)
        for program in listed
    }
