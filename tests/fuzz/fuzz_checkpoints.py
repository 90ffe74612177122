"""Checkpoints: config.json, the index, generation_config.json, the shards' headers and data, files lost and swapped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_json import Bytes, Damage, byte_changes, change_bytes, damages, replace_file, write_damaged
from fuzz_scratch import Scratch
from fuzz_surface import Surface, link_folder, read_json, replace_bytes, wrong
from fuzz_weights import read_header, read_tensors
from fuzz_worker import RIGHT, Outcome, Request, Result, Worker
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
GENERATION_BASE = {"bos_token_id": 1, "do_sample": True, "eos_token_id": [511, 510], "pad_token_id": 511}
LAYOUTS = ("hf", "original")
# How config.json spells what the model has, and what a key means that is not there.
SPELLINGS: dict[str, tuple[tuple[str, ...], Any]] = {
    "hidden_size": (("hidden_size",), None),
    "intermediate_size": (("intermediate_size",), None),
    "num_hidden_layers": (("num_hidden_layers",), None),
    "num_attention_heads": (("num_attention_heads",), None),
    "num_key_value_heads": (("num_key_value_heads",), None),
    "head_dim": (("head_dim",), None),
    "vocab_size": (("vocab_size",), None),
    "num_local_experts": (("num_local_experts", "num_experts"), None),
    "num_experts_per_tok": (("num_experts_per_tok", "experts_per_token"), None),
    "sliding_window": (("sliding_window",), 0),
    "max_position_embeddings": (("max_position_embeddings",), None),
    "rms_norm_eps": (("rms_norm_eps",), 1e-5),
    "swiglu_alpha": (("swiglu_alpha",), 1.702),
    "swiglu_limit": (("swiglu_limit",), 7.0),
}


NONE = Damage()


@dataclass(frozen=True)
class CheckpointCase:
    """A damage of one file. what: config, index, generation, header, data, file (of a shard), swap (two shards)."""

    layout: str
    what: str
    damage: Damage = NONE
    shard: int = 0
    text: tuple[Bytes, ...] = ()
    file: str = ""
    build: bool = False


class Checkpoints(Surface[CheckpointCase]):
    """A checkpoint that is opened and read, or built without compiling."""

    name, share = "checkpoints", 60

    def cases(self) -> SearchStrategy[CheckpointCase]:
        return st.sampled_from(LAYOUTS).flatmap(self._cases)

    def _cases(self, layout: str) -> SearchStrategy[CheckpointCase]:
        folder = self.bases.checkpoints[layout]
        shards = _shards(folder)
        shard = st.integers(0, len(shards) - 1)
        fixed, build = st.just(layout), st.sampled_from((False,) * 7 + (True,))

        def documents(what: str, document: Any) -> SearchStrategy[CheckpointCase]:
            return st.builds(
                CheckpointCase, layout=fixed, what=st.just(what), damage=damages(document), shard=shard, build=build
            )

        header = read_header(shards[3].read_bytes())[0]
        files = st.sampled_from(("folder", "missing", "fifo", "device", "dangling link", "empty", "lfs pointer"))
        return st.one_of(
            documents("config", read_json(folder / "config.json")),
            documents("config", read_json(folder / "config.json")),
            documents("index", read_json(folder / INDEX)),
            documents("generation", GENERATION_BASE),
            documents("header", header),
            st.builds(
                CheckpointCase,
                layout=fixed,
                what=st.just("data"),
                shard=shard,
                text=byte_changes(),
                build=build,
            ),
            st.builds(CheckpointCase, layout=fixed, what=st.just("file"), shard=shard, file=files),
            st.builds(CheckpointCase, layout=fixed, what=st.just("swap"), shard=shard),
        )

    def unchanged(self) -> CheckpointCase:
        return CheckpointCase("hf", "config")

    def prepare(self, case: CheckpointCase, scratch: Scratch) -> Request:
        folder = link_folder(self.bases.checkpoints[case.layout], scratch.input / "checkpoint")
        change(folder, case, scratch.root)
        if not case.build:
            return Request("checkpoint", {"folder": str(folder)})
        options = ["--target", "aoti", "--device", "cpu", "--max-context", "64", "--prefill-chunk", "16", "--json"]
        return Request("build", {"argv": ["build", str(folder), "-o", str(scratch.output / "made"), *options]})

    def judge(self, case: CheckpointCase, scratch: Scratch, result: Result, worker: Worker) -> Outcome:
        folder = scratch.input / "checkpoint"
        raw = read_json(folder / "config.json")
        if case.build:
            built = read_json(scratch.output / "made" / "manifest.json")
            return _judge_config(raw, built["model"]) if result.status == 0 else wrong(f"exit {result.status}")
        if (outcome := _judge_config(raw, result.value["config"])) != RIGHT:
            return outcome
        stored: dict[str, list[Any]] = {}
        for path in _named_shards(folder):
            for name, tensor in read_tensors(path).items():
                if name in stored:
                    return wrong(f"accepts {name}, which is in two shards")
                stored[name] = [list(tensor.shape), hashlib.sha256(tensor.data).hexdigest()]
        if stored != result.value["tensors"]:
            return wrong(f"reads other tensors than are stored: {_differences(stored, result.value['tensors'])}")
        stops = raw.get("eos_token_id")
        if (folder / GENERATION).exists():
            named = read_json(folder / GENERATION).get("eos_token_id")
            stops = stops if named is None else named
        expected = [] if stops is None else stops if isinstance(stops, list) else [stops]
        found = result.value["stop_tokens"]
        return RIGHT if found == expected else wrong(f"stop tokens {found}, expected {expected}")


def change(folder: Path, case: CheckpointCase, root: Path) -> None:
    """Change the checkpoint in `folder`."""
    shards = _shards(folder)
    shard = shards[case.shard % len(shards)]
    if case.what == "config":
        write_damaged(folder / "config.json", read_json(folder / "config.json"), case.damage, root)
    elif case.what == "index":
        write_damaged(folder / INDEX, read_json(folder / INDEX), case.damage, root)
    elif case.what == "generation":
        write_damaged(folder / GENERATION, GENERATION_BASE, case.damage, root)
    elif case.what == "header":
        data = shard.read_bytes()
        header, start = read_header(data)
        write_damaged(shard, header, case.damage, root)
        if shard.is_file() and not shard.is_symlink():
            text = shard.read_bytes()
            text += b" " * (-len(text) % 8)
            replace_bytes(shard, len(text).to_bytes(8, "little") + text + data[start:])
    elif case.what == "data":
        data = shard.read_bytes()
        for item in case.text:
            data = change_bytes(data, item)
        replace_bytes(shard, data)
    elif case.what == "file":
        replace_file(shard, case.file)
    else:
        other = shards[(case.shard + 1) % len(shards)]
        first, second = shard.read_bytes(), other.read_bytes()
        replace_bytes(shard, second)
        replace_bytes(other, first)


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _named_shards(folder: Path) -> list[Path]:
    """The shards that the index names; without an index all."""
    if not (folder / INDEX).exists():
        single = folder / "model.safetensors"
        return [single] if single.exists() else _shards(folder)
    return [folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]


def _judge_config(raw: dict[str, Any], model: dict[str, Any]) -> Outcome:
    """Compare a model with what its config.json says, key by key."""
    for field, (keys, default) in SPELLINGS.items():
        values = [raw[key] for key in keys if raw.get(key) is not None] or [default]
        if field == "max_position_embeddings" and values == [None]:
            values = [int(raw["initial_context_length"] * raw["rope_scaling_factor"])]
        if model[field] not in values:
            return wrong(f"{field}: read {model[field]!r}, config.json says {values}")
    kinds = raw.get("layer_types") or ["sliding_attention", "full_attention"] * (model["num_hidden_layers"] // 2 + 1)
    if model["layer_types"] != kinds[: model["num_hidden_layers"]]:
        return wrong(f"layer_types: read {model['layer_types']}, config.json says {kinds}")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    factor = rope.get("factor", raw.get("rope_scaling_factor"))
    if (model["rope"]["theta"], model["rope"]["factor"]) != (theta, factor):
        return wrong(f"rope: read {model['rope']}, config.json says theta {theta}, factor {factor}")
    return RIGHT


def _differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    return json.dumps([name for name in {*one, *other} if one.get(name) != other.get(name)][:3])
