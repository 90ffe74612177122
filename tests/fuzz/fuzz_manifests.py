"""Manifests: damaged ones, and consistent ones that a forger made, whose hashes are right."""

from __future__ import annotations

import dataclasses
import html.parser
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_json import Damage, damaged, damages, write_damaged
from fuzz_scratch import Scratch
from fuzz_surface import Answers, Bases, Surface, describe, link_folder, read_json, replace_bytes, run_request, wrong
from fuzz_weights import read_tensors, resized, write_tensors
from fuzz_worker import RIGHT, Outcome, Request, Result, Worker
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

NAME = "manifest.json"
SIZES = ("widths", "max_context", "prefill_chunks")
MODEL = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "num_local_experts",
    "num_experts_per_tok",
    "sliding_window",
    "max_position_embeddings",
    "rms_norm_eps",
    "swiglu_alpha",
    "swiglu_limit",
)
STEPS = ("*2", "//2", "+1", "-1", "+32", "*16")


@dataclass(frozen=True)
class Inspected:
    """A damaged manifest that is shown. options: of `inspect`."""

    options: tuple[str, ...]
    damage: Damage


@dataclass(frozen=True)
class Run:
    """A damaged manifest that is run, with real code."""

    damage: Damage
    hashes: bool


@dataclass(frozen=True)
class Forged:
    """A manifest and weights that agree with each other, and not with the code.

    kind     sizes, model, layer_types, dtype, weight (two weights change their places), data (bytes of weights)
    field    what changes
    step     how a number changes
    rehashed whether the hashes of changed files are those of the manifest
    """

    kind: str
    field: int
    step: str
    rehashed: bool = True


class _Page(html.parser.HTMLParser):
    """Finds what a page of `--html` never has."""

    tags = (
        *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "section", "footer", "h1", "h2"),
        *("p", "dl", "div", "dt", "dd", "figure", "figcaption", "table", "caption", "tr", "th", "td"),
        *("svg", "g", "path", "use", "text", "defs", "clippath", "rect"),
    )
    attributes = (
        *("lang", "charset", "name", "content", "http-equiv", "rel", "class", "id", "role", "tabindex", "scope"),
        *("aria-label", "aria-labelledby", "style", "viewbox", "d", "x", "y", "width", "height", "transform"),
        *("href", "clip-path"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        links = [value or "" for name, value in attrs if name == "href"]
        inside = all(link.startswith("#") or (tag, link) == ("link", "data:,") for link in links)
        if tag not in self.tags or not names <= set(self.attributes) or not inside:
            self.bad.append(f"{tag} {attrs}")


class ShownManifests(Surface[Inspected]):
    """`inspect` opens no code."""

    name, share = "inspected manifests", 45

    def cases(self) -> SearchStrategy[Inspected]:
        options = st.sampled_from([(), ("--json",), ("--html", "{out}/page.html")])
        return st.builds(Inspected, options=options, damage=damages(read_json(self.bases.uncompiled / NAME)))

    def unchanged(self) -> Inspected:
        return Inspected(("--json",), Damage())

    def prepare(self, case: Inspected, scratch: Scratch) -> Request:
        folder = link_folder(self.bases.uncompiled, scratch.input / "artifact")
        write_damaged(folder / NAME, read_json(self.bases.uncompiled / NAME), case.damage, scratch.root)
        options = [option.replace("{out}", str(scratch.output)) for option in case.options]
        return Request("command", {"argv": ["inspect", str(folder), *options]})

    def judge(self, case: Inspected, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        if "--json" in case.options:
            document = read_json(self.bases.uncompiled / NAME)
            shown, held = json.loads(result.stdout), json.loads(damaged(document, case.damage, scratch.root))
            for more in ("tables", "signature"):
                shown.pop(more)
            return RIGHT if shown == held else wrong(f"shows another manifest: {_difference(shown, held)}")
        if steering := {character for character in result.stdout if ord(character) < 32 and character != "\n"}:
            return wrong(f"shows {sorted(steering)}")
        if case.options:
            page = _Page()
            page.feed((scratch.output / "page.html").read_text(encoding="utf-8"))
            return wrong(f"the page holds {page.bad[:3]}") if page.bad else RIGHT
        return RIGHT if "artifact" in result.stdout else wrong("shows nothing")


class RunManifests(Surface[Run]):
    """Manifests of the real artifact that are damaged without a plan."""

    name, share = "run manifests", 30

    def __init__(self, bases: Bases) -> None:
        super().__init__(bases)
        self._answers = Answers(bases)

    def cases(self) -> SearchStrategy[Run]:
        return st.builds(Run, damage=damages(read_json(self.bases.artifact / NAME)), hashes=st.booleans())

    def unchanged(self) -> Run:
        return Run(Damage(), True)

    def prepare(self, case: Run, scratch: Scratch) -> Request:
        folder = link_folder(self.bases.artifact, scratch.input / "artifact")
        write_damaged(folder / NAME, read_json(self.bases.artifact / NAME), case.damage, scratch.root)
        return run_request(folder, *([] if case.hashes else ["--no-verify-hashes"]))

    def judge(self, case: Run, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        return self._answers.judge(scratch.input / "artifact", scratch, result, worker)


class ForgedManifests(Surface[Forged]):
    """Manifests in which everything fits together, and weights that fit to them."""

    name, share = "forged manifests", 30

    def __init__(self, bases: Bases) -> None:
        super().__init__(bases)
        self._answers = Answers(bases)

    def cases(self) -> SearchStrategy[Forged]:
        kinds = ("sizes", "model", "model", "layer_types", "dtype", "weight", "data")
        return st.builds(
            Forged,
            kind=st.sampled_from(kinds),
            field=st.integers(0, 999),
            step=st.sampled_from(STEPS),
            rehashed=st.sampled_from((True, True, False)),
        )

    def unchanged(self) -> Forged:
        return Forged("nothing", 0, "+1")

    def prepare(self, case: Forged, scratch: Scratch) -> Request:
        folder = link_folder(self.bases.artifact, scratch.input / "artifact")
        manifest = read_json(folder / NAME)
        before = {name: dict(spec) for name, spec in manifest["files"].items()}
        forge(manifest, case, folder)
        if not case.rehashed:
            manifest["files"] |= {name: spec for name, spec in before.items() if name in manifest["files"]}
        replace_bytes(folder / NAME, json.dumps(manifest).encode())
        return run_request(folder)

    def judge(self, case: Forged, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        if case.kind == "data" and not case.rehashed:
            return wrong("a changed file was run with the hash of the one that was built")
        return self._answers.judge(scratch.input / "artifact", scratch, result, worker)


def forge(manifest: dict[str, Any], case: Forged, folder: Path) -> None:
    """Change the manifest and the weights in `folder`, so that they fit together again."""
    model, sizes = manifest["model"], manifest["sizes"]
    if case.kind == "nothing":
        return
    if case.kind == "data":
        _change_data(manifest, case, folder)
        return
    if case.kind == "weight":
        _swap_weights(manifest, case.field)
        return
    if case.kind == "sizes":
        name = SIZES[case.field % len(SIZES)]
        old = sizes[name]
        listed = isinstance(old, list)
        sizes[name] = [_stepped(item, case.step) for item in old] if listed else _stepped(old, case.step)
    elif case.kind == "model":
        name = MODEL[case.field % len(MODEL)]
        model[name] = _stepped(model[name], case.step)
        if name == "num_hidden_layers":
            model["layer_types"] = [model["layer_types"][index % 2] for index in range(model[name])]
    elif case.kind == "layer_types":
        index = case.field % len(model["layer_types"])
        old = model["layer_types"][index]
        model["layer_types"][index] = "full_attention" if old == "sliding_attention" else "sliding_attention"
    else:
        manifest["dtype"] = "bfloat16"
    _fit(manifest, folder)


def _stepped(value: Any, step: str) -> Any:
    steps = {"*2": value * 2, "//2": value // 2 if isinstance(value, int) else value / 2, "+1": value + 1}
    return (steps | {"-1": value - 1, "+32": value + 32, "*16": value * 16})[step]


def _fit(manifest: dict[str, Any], folder: Path) -> None:
    """Derive programs and weights from model and sizes, and write weights of the shapes that they then have."""
    from gptoss_export.artifact.programs import Sizes, programs_of
    from gptoss_export.model.config import ModelConfig, violations
    from gptoss_export.model.parameters import parameters

    config = ModelConfig.from_json(manifest["model"])
    listed = {name: manifest["sizes"][name] for name in ("widths", "prefill_chunks")}
    if violations(config) or min(map(min, listed.values())) < 1:
        return  # refused for that alone
    sizes = Sizes(**manifest["sizes"] | {name: tuple(numbers) for name, numbers in listed.items()})
    signatures = {item.name: item.signature(config, sizes, manifest["dtype"]) for item in programs_of(sizes, "cpu")}
    manifest["programs"] = {name: dataclasses.asdict(item) for name, item in signatures.items()}
    old, made = manifest["weights"], {}
    manifest["weights"] = {}
    for item in parameters(config, manifest["dtype"]):
        weight = old.get(item.name) or old[_of_layer_0(item.name)]
        if tuple(weight["shape"]) == item.shape and item.name in old:
            manifest["weights"][item.name] = weight | {"dtype": item.dtype}
            continue
        parts = [read_tensors(folder / part["file"])[part["tensor"]] for part in weight["parts"]]
        made[item.name] = resized(parts, item.shape)
        part = {"file": "forged.safetensors", "tensor": item.name}
        manifest["weights"][item.name] = {"shape": list(item.shape), "dtype": item.dtype, "parts": [part]}
    if made:
        write_tensors(folder / "forged.safetensors", made)
        manifest["files"]["forged.safetensors"] = describe(folder / "forged.safetensors")


def _of_layer_0(name: str) -> str:
    stem, layers, rest = name.partition("layers.")
    return f"{stem}{layers}0.{rest.partition('.')[2]}"


def _swap_weights(manifest: dict[str, Any], index: int) -> None:
    """Two weights of one shape change their places."""
    weights = manifest["weights"]
    name = list(weights)[index % len(weights)]
    same = [other for other in weights if other != name and weights[other]["shape"] == weights[name]["shape"]]
    if same:
        other = same[index % len(same)]
        weights[name]["parts"], weights[other]["parts"] = weights[other]["parts"], weights[name]["parts"]


def _change_data(manifest: dict[str, Any], case: Forged, folder: Path) -> None:
    """Some bytes of a file of weights."""
    names = sorted(name for name in manifest["files"] if name.endswith(".safetensors"))
    name = names[case.field % len(names)]
    data = bytearray((folder / name).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    if start < len(data):
        at = start + (case.field * 7919) % (len(data) - start)
        data[at] ^= 1 << STEPS.index(case.step)
    else:
        data += b"\0"
    replace_bytes(folder / name, bytes(data))
    manifest["files"][name] = describe(folder / name)


def _difference(shown: dict[str, Any], held: dict[str, Any]) -> str:
    return ", ".join(key for key in {*shown, *held} if shown.get(key) != held.get(key))
