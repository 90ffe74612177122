"""Tokenizers, schedules of TensorRT artifacts and tuned configs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_json import STRINGS, Damage, damaged, damages, write_damaged
from fuzz_scratch import Scratch
from fuzz_surface import Surface, describe, link_folder, read_json, replace_bytes, wrong
from fuzz_worker import RIGHT, Outcome, Request, Result, Worker
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

BYTES = {"float32": 4, "bfloat16": 2, "int64": 8, "uint8": 1, "int32": 4}


@dataclass(frozen=True)
class TokenizerCase:
    """prompt: the name of a text. tokens: what is decoded."""

    damage: Damage
    prompt: str
    tokens: tuple[int, ...]
    special: bool


class Tokenizers(Surface[TokenizerCase]):
    """Texts by a damaged tokenizer.json, compared with what the library alone makes of them."""

    name, share = "tokenizers", 25

    def cases(self) -> SearchStrategy[TokenizerCase]:
        document = read_json(self.bases.uncompiled / "tokenizer.json")
        return st.builds(
            TokenizerCase,
            damage=damages(document, files=False),  # an artifact with anything but a file there is not loaded
            prompt=st.sampled_from([name for name, text in STRINGS.items() if text is not None]),
            tokens=st.lists(st.integers(0, 520), max_size=12).map(tuple),
            special=st.booleans(),
        )

    def unchanged(self) -> TokenizerCase:
        return TokenizerCase(Damage(), "unicode", (1, 2, 3), True)

    def prepare(self, case: TokenizerCase, scratch: Scratch) -> Request:
        path = scratch.input / "tokenizer.json"
        document = read_json(self.bases.uncompiled / "tokenizer.json")
        write_damaged(path, document, case.damage, scratch.root)
        return Request("text", {"folder": str(scratch.input), **self._arguments(case)})

    def _arguments(self, case: TokenizerCase) -> dict[str, Any]:
        return {"prompt": STRINGS[case.prompt], "tokens": list(case.tokens), "special_tokens": case.special}

    def judge(self, case: TokenizerCase, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        scratch.report.unlink()
        path = str(scratch.input / "tokenizer.json")
        alone = worker.run(Request("plain_text", {"path": path, **self._arguments(case)}), scratch).value
        if alone is None:
            return wrong("accepts what the library refuses")
        found = {key: result.value[key] for key in alone}
        if found != alone:
            return wrong(f"found {found}, the library alone {alone}")
        streamed = result.value["streamed"]
        return (
            RIGHT if streamed == alone["text"] else wrong(f"streams {streamed!r}, the whole text is {alone['text']!r}")
        )


@dataclass(frozen=True)
class ScheduleCase:
    """A damaged schedule that is read, or shown by `inspect`."""

    damage: Damage
    shown: bool


class Schedules(Surface[ScheduleCase]):
    """Schedules of a TensorRT artifact without engines."""

    name, share = "schedules", 30

    def cases(self) -> SearchStrategy[ScheduleCase]:
        return st.builds(ScheduleCase, damage=damages(self._base()[1]), shown=st.booleans())

    def unchanged(self) -> ScheduleCase:
        return ScheduleCase(Damage(), False)

    def prepare(self, case: ScheduleCase, scratch: Scratch) -> Request:
        manifest, schedule = self._base()
        folder = link_folder(self.bases.uncompiled, scratch.input / "artifact")
        for name in ("engines/e.engine", "plugins/k-1.cubin"):
            (folder / name).parent.mkdir()
            (folder / name).write_bytes(b"no code")
            manifest["files"][name] = describe(folder / name)
        path = folder / "schedule.json"
        write_damaged(path, schedule, case.damage, scratch.root)
        plain = path.is_file() and not path.is_symlink()
        manifest["files"]["schedule.json"] = describe(path) if plain else {"bytes": 1, "sha256": "0" * 64, "pieces": []}
        replace_bytes(folder / "manifest.json", json.dumps(manifest).encode())
        if case.shown:
            return Request("command", {"argv": ["inspect", str(folder), "--json"]})
        return Request("schedule", {"folder": str(folder)})

    def judge(self, case: ScheduleCase, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        manifest, schedule = self._base()
        held = json.loads(damaged(schedule, case.damage, scratch.root))
        if not case.shown and result.value != held:
            return wrong("reads another schedule than the file holds")
        for name, program in held["programs"].items():
            for step in program["steps"]:
                if problem := _outside(step, program, held, manifest["programs"][name]):
                    return wrong(f"accepts a step of {name} that {problem}")
        return RIGHT

    def _base(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """A manifest, and a schedule for it: each program is an engine, a kernel and the engine again."""
        manifest = read_json(self.bases.uncompiled / "manifest.json")
        manifest |= {"target": "tensorrt", "device": "cuda", "archs": ["sm_90"]}
        manifest["versions"]["tensorrt_rtx"] = "1.6.1.120"
        for name in ("choose_drawn", "choose_limited", "choose_adjusted"):  # which TensorRT has not
            del manifest["programs"][name]
        plugin = {
            "function": "_k",
            "inputs": ["x", "y"],
            "outputs": ["z"],
            "bytes": [256, _bytes(manifest["programs"]["decode_3"]["inputs"][4]), 512],
            "grid": [2, 1, 1],
            "threads": 128,
            "shared": 0,
        }
        programs = {}
        for name, signature in manifest["programs"].items():
            whole = {
                "engine": "e",
                "inputs": [_at("input", index) for index in range(4)],
                "outputs": [_at("arena", 256)],
            }
            kernel = {"plugin": "k-1", "arguments": [_at("arena", 0), _at("input", 4), _at("arena", 512)]}
            last = {
                "engine": "e",
                "inputs": [_at("arena", 512)],
                "outputs": [_at("output", index) for index in range(len(signature["outputs"]))],
            }
            few = len(signature["inputs"]) < 5
            programs[name] = {"arena": 1024, "steps": [last] if few else [whole, kernel, last]}
        description = _described(manifest, self.bases.uncompiled)
        return manifest, {
            "description": description,
            "engines": {"e": "all of it"},
            "plugins": {"k-1": plugin},
            "programs": programs,
        }


def _described(manifest: dict[str, Any], folder: Path) -> str:
    """The description of code for this manifest, of which some fields are not those of the manifest in `folder`."""
    from gptoss_export.artifact.description import describe_code
    from gptoss_export.artifact.manifest import load_manifest

    read = load_manifest(folder)
    return describe_code(
        target=manifest["target"],
        target_options=read.target_options,
        device=manifest["device"],
        arch="sm_90",
        dtype=read.dtype,
        model=read.model,
        sizes=read.sizes,
        programs={name: read.programs[name] for name in manifest["programs"]},
    )


def _bytes(spec: dict[str, Any]) -> int:
    return math.prod(spec["shape"]) * BYTES[spec["dtype"]]


def _at(place: str, value: int) -> dict[str, Any]:
    return {"place": place, "value": value}


def _outside(step: dict[str, Any], program: dict[str, Any], held: dict[str, Any], signature: Any) -> str | None:
    """What a step touches that is not its memory."""
    if "plugin" in step:
        plugin = held["plugins"][step["plugin"]]
        pairs = list(zip(step["arguments"], plugin["bytes"], strict=True))
        written = step["arguments"][len(plugin["inputs"]) :]
    else:
        pairs = [(item, 1) for item in (*step["inputs"], *step["outputs"])]
        written = step["outputs"]
    for item, size in pairs:
        if item["place"] == "arena":
            room = program["arena"] - item["value"]
        else:
            room = _bytes(signature[f"{item['place']}s"][item["value"]])
        if item["value"] < 0 or size < 0 or size > room:
            return f"touches {size} bytes of {item}, of which there are {room}"
    for item in written:
        if item["place"] == "input" and signature["inputs"][item["value"]]["role"] != "cache":
            return f"writes {item}"
    return None


class TunedConfigs(Surface[Damage]):
    """Tuned configs that are read, written again and looked up."""

    name, share = "tuned configs", 25

    def cases(self) -> SearchStrategy[Damage]:
        return damages(self._base())

    def unchanged(self) -> Damage:
        return Damage()

    def prepare(self, case: Damage, scratch: Scratch) -> Request:
        path = scratch.input / "tuned.json"
        write_damaged(path, self._base(), case, scratch.root)
        return Request("tuned_configs", {"path": str(path), "output": str(scratch.output / "again.json")})

    def judge(self, case: Damage, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        held = json.loads(damaged(self._base(), case, scratch.root))
        for value in (result.value, read_json(scratch.output / "again.json")):
            same = {key: value[key] for key in ("arch", "gpu", "versions")} == {
                key: held[key] for key in ("arch", "gpu", "versions")
            }
            entries = sorted(map(_sorted, value["entries"])) == sorted(map(_sorted, held["entries"]))
            if not same or not entries:
                return wrong("reads other tuned configs than the file holds")
        return RIGHT

    def _base(self) -> dict[str, Any]:
        document: dict[str, Any] = read_json(self.bases.tuned_configs)
        return document | {"entries": document["entries"][:6]}


def _sorted(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def tuned_file(root: Path) -> Path:
    """A file of tuned configs that the kernels' package ships."""
    return sorted((root / "plugins" / "gptoss_plugins" / "tuned_configs").glob("*.json"))[0]
