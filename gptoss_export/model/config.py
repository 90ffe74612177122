"""The shape of a gpt-oss model, read from a config.json in one of two spellings.

Sources: Hugging Face's `GptOssConfig`, and the config.json next to the original weights (`num_experts`,
`experts_per_token`, `initial_context_length`, `rope_scaling_factor`, ...).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..errors import CheckpointError, raise_all
from ..json_file import elements, read_object
from ..values import shown
from .expert_formats import FORMATS, MXFP4, ExpertFormat
from .spellings import ROPE_SECTIONS, contradictions

SLIDING = "sliding_attention"
FULL = "full_attention"
# The smallest and the largest number that is believed. A wrong one would cost hours or all memory before it is noticed.
BELIEVED: dict[str, tuple[float, float]] = {
    "hidden_size": (1, 2**20),
    "intermediate_size": (1, 2**20),
    "num_hidden_layers": (1, 2**10),
    "num_attention_heads": (1, 2**12),
    "num_key_value_heads": (1, 2**12),
    "head_dim": (1, 2**12),
    "vocab_size": (1, 2**24),
    "num_local_experts": (1, 2**12),
    "num_experts_per_tok": (1, 2**12),
    "sliding_window": (1, 2**30),
    "max_position_embeddings": (1, 2**30),
    "rms_norm_eps": (1e-12, 1.0),
    "swiglu_alpha": (1e-3, 1e3),
    "swiglu_limit": (1e-3, 1e6),
    "rope.theta": (1.0, 1e12),
    "rope.factor": (1.0, 1e6),
    "rope.original_max_position_embeddings": (1, 2**30),
    "rope.beta_fast": (1e-3, 1e6),
    "rope.beta_slow": (1e-3, 1e6),
    "rope.attention_factor": (1e-3, 1e3),
}


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (Peng et al. 2023, arXiv:2309.00071), as gpt-oss uses it."""

    theta: float
    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False
    attention_factor: float | None = None

    @property
    def concentration(self) -> float:
        """The factor of cos and sin: `attention_factor` if it is given, else 0.1 ln(factor) + 1 (section 3.4)."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True)
class ModelConfig:
    """Everything about the model that the programs depend on. The names are those of Hugging Face."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int
    layer_types: tuple[str, ...]
    max_position_embeddings: int
    rms_norm_eps: float
    swiglu_alpha: float
    swiglu_limit: float
    rope: Yarn
    eos_token_ids: tuple[int, ...] = ()
    experts_format: str = MXFP4.name  # of FORMATS; a build chooses it, and no config.json has it

    @property
    def expert_format(self) -> ExpertFormat:
        """How the experts' weights are stored."""
        return FORMATS[self.experts_format]

    @property
    def ranks(self) -> int:
        """How many ranks share the model (`ranks.RankConfig`)."""
        return 1

    @property
    def by_expert(self) -> bool:
        """Whether the ranks have different experts, and not parts of each expert."""
        return False

    @property
    def held_experts(self) -> int:
        """How many experts are computed here."""
        return self.num_local_experts

    @property
    def unembedded_tokens(self) -> int:
        """Of how many tokens the logits are computed here."""
        return self.vocab_size

    def window(self, layer: int) -> int:
        """How many positions a query of `layer` sees, its own included. 0 means all of them."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else 0

    def shortest(self) -> Self:
        """The model with its first layers only, as many as it takes to have every kind of layer."""
        kinds = self.layer_types
        count = next(count for count in range(1, len(kinds) + 1) if set(kinds[:count]) == set(kinds))
        return dataclasses.replace(self, num_hidden_layers=count, layer_types=kinds[:count])

    def to_json(self) -> dict[str, Any]:
        """The config as an object of JSON."""
        return dataclasses.asdict(self) | {
            "layer_types": list(self.layer_types),
            "eos_token_ids": list(self.eos_token_ids),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_json`. Checks no values: see `violations`."""
        fields = dict(data)
        fields["rope"] = Yarn(**fields["rope"])
        fields["layer_types"] = elements(fields["layer_types"])
        fields["eos_token_ids"] = elements(fields["eos_token_ids"])
        return cls(**fields)


def read_config(folder: Path) -> ModelConfig:
    """Read `folder`/config.json, in the spelling of Hugging Face or of the original.

    Raises CheckpointError. It names every key that is missing, of the wrong type or out of range.
    """
    path = folder / "config.json"
    raw = read_object(path, CheckpointError, missing="not found; a checkpoint folder holds a config.json")
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], source: str) -> ModelConfig:
    """Turn the parsed config.json into a ModelConfig. `source` is its name in errors. Raises as `read_config`."""
    keys = _Keys(raw)
    keys.problems += contradictions(raw)
    config = _original(keys) if _is_original(raw) else _hugging_face(keys)
    problems = keys.problems or violations(config)
    raise_all(CheckpointError, f"{source}: not a gpt-oss config", problems)
    return config


def _is_original(raw: dict[str, Any]) -> bool:
    """Whether a config.json is in the original spelling. One that has all of Hugging Face's is read as such."""
    complete = "max_position_embeddings" in raw and any(isinstance(raw.get(name), dict) for name in ROPE_SECTIONS)
    return "rope_scaling_factor" in raw and not complete


class _Keys:
    """Typed look-ups in an object of JSON. They collect what is wrong in `problems` instead of raising an error.

    After a problem a look-up returns a value of the right type, so that the keys after it are checked too.
    """

    def __init__(self, raw: dict[str, Any], prefix: str = "", problems: list[str] | None = None) -> None:
        self.raw, self.prefix = raw, prefix
        self.problems: list[str] = [] if problems is None else problems

    def number(self, key: str, kind: type[int] | type[float], default: float | None = None) -> Any:
        """A finite number of type `kind`. An absent key and null give the default; without one they are a problem."""
        value = self.raw.get(key)
        value = default if value is None else value
        if value is None:
            self.problems.append(f"{self.prefix}{key}: missing")
            return kind(1)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2.0**63
        if not good or (kind is int and value != int(value)):
            self.problems.append(f"{self.prefix}{key}: found {shown(value)}, expected a finite {kind.__name__}")
            return kind(1)
        return kind(value)

    def fixed(self, key: str, expected: Any, *others: Any) -> None:
        """Check a key that has one possible value in gpt-oss, or others of the same meaning. Absent counts as it."""
        if (value := self.raw.get(key, expected)) not in (expected, *others):
            self.problems.append(f"{self.prefix}{key}: found {shown(value)}, gpt-oss has {expected!r}")

    def first(self, key: str, other: str) -> str:
        """The one of two keys that has a value; the second if neither has."""
        return key if self.raw.get(key) is not None else other

    def section(self, *names: str) -> _Keys:
        """Look-ups in the first of these keys that holds an object.

        If none does, that is one problem, and missing keys inside of it are no further ones.
        """
        for name in names:
            if isinstance(value := self.raw.get(name), dict):
                return _Keys(value, f"{name}.", self.problems)
        self.problems.append(f"{names[0]}: missing")
        return _Keys({}, f"{names[0]}.", [])


def _common(keys: _Keys) -> dict[str, Any]:
    """The fields that have the same key in both spellings. Checks those that gpt-oss does not leave open."""
    keys.fixed("model_type", "gpt_oss")
    keys.fixed("hidden_act", "silu")
    keys.fixed("attention_bias", True)
    keys.fixed("tie_word_embeddings", False)
    keys.fixed("partial_rotary_factor", None, 1.0)
    return {
        "hidden_size": keys.number("hidden_size", int),
        "intermediate_size": keys.number("intermediate_size", int),
        "num_attention_heads": keys.number("num_attention_heads", int),
        "num_key_value_heads": keys.number("num_key_value_heads", int),
        "head_dim": keys.number("head_dim", int),
        "vocab_size": keys.number("vocab_size", int),
        "rms_norm_eps": keys.number("rms_norm_eps", float, 1e-5),
        "swiglu_alpha": keys.number("swiglu_alpha", float, 1.702),
        "swiglu_limit": keys.number("swiglu_limit", float, 7.0),
        "eos_token_ids": _token_ids(keys),
    }


def _hugging_face(keys: _Keys) -> ModelConfig:
    layers = keys.number("num_hidden_layers", int)
    # transformers 5 writes rope_parameters, which holds rope_theta. Version 4 wrote rope_scaling and, outside of it,
    # rope_theta.
    rope = keys.section(*ROPE_SECTIONS)
    if rope.raw and not (rope.raw.get("rope_type") or rope.raw.get("type")):
        keys.problems.append(f"{rope.prefix}rope_type: missing, gpt-oss has 'yarn'")
    _check_rope_type(rope)
    theta = rope if "rope_theta" in rope.raw else keys
    truncate = rope.raw.get("truncate", True)
    if not isinstance(truncate, bool):
        keys.problems.append(f"{rope.prefix}truncate: found {shown(truncate)}, expected true or false")
    attention_factor = rope.raw.get("attention_factor")
    if attention_factor is not None:
        attention_factor = rope.number("attention_factor", float)
    layer_types = keys.raw.get("layer_types")
    if layer_types is None:
        layer_types = alternating(layers)
    if not isinstance(layer_types, list) or not all(isinstance(kind, str) for kind in layer_types):
        keys.problems.append(f"layer_types: found {shown(layer_types)}, expected a list of strings")
        layer_types = []
    return ModelConfig(
        **_common(keys),
        num_hidden_layers=layers,
        num_local_experts=keys.number(keys.first("num_local_experts", "num_experts"), int),
        num_experts_per_tok=keys.number(keys.first("num_experts_per_tok", "experts_per_token"), int),
        sliding_window=keys.number("sliding_window", int, None if SLIDING in layer_types else 0),
        layer_types=tuple(layer_types),
        max_position_embeddings=keys.number("max_position_embeddings", int),
        rope=Yarn(
            theta=theta.number("rope_theta", float),
            factor=rope.number("factor", float),
            original_max_position_embeddings=rope.number("original_max_position_embeddings", int),
            beta_fast=rope.number("beta_fast", float, 32.0),
            beta_slow=rope.number("beta_slow", float, 1.0),
            truncate=truncate,
            attention_factor=attention_factor,
        ),
    )


def _check_rope_type(rope: _Keys) -> None:
    """Check the keys of a section of RoPE that gpt-oss does not leave open, where it has them."""
    kind = rope.raw.get("rope_type", rope.raw.get("type"))
    if kind not in ("yarn", None):
        rope.problems.append(f"{rope.prefix}rope_type: found {shown(kind)}, gpt-oss has 'yarn'")
    for unused in ("mscale", "mscale_all_dim"):
        rope.fixed(unused, None)
    rope.fixed("partial_rotary_factor", None, 1.0)


def _original(keys: _Keys) -> ModelConfig:
    layers = keys.number("num_hidden_layers", int)
    context = keys.number("initial_context_length", int)
    factor = keys.number("rope_scaling_factor", float)
    keys.fixed("layer_types", alternating(layers), None)
    keys.fixed("max_position_embeddings", int(context * factor), None)
    rope = Yarn(
        theta=keys.number("rope_theta", float),
        factor=factor,
        original_max_position_embeddings=context,
        beta_fast=keys.number("rope_ntk_beta", float, 32.0),
        beta_slow=keys.number("rope_ntk_alpha", float, 1.0),
    )
    for name in ROPE_SECTIONS:  # this spelling has no key for what these say
        if isinstance(section := keys.raw.get(name), dict):
            inside = _Keys(section, f"{name}.", keys.problems)
            _check_rope_type(inside)
            inside.fixed("truncate", rope.truncate, None)
            if section.get("attention_factor") is not None:
                found = inside.number("attention_factor", float)
                if not math.isclose(found, rope.concentration, rel_tol=1e-6):
                    inside.fixed("attention_factor", rope.concentration)
    return ModelConfig(
        **_common(keys),
        num_hidden_layers=layers,
        num_local_experts=keys.number(keys.first("num_experts", "num_local_experts"), int),
        num_experts_per_tok=keys.number(keys.first("experts_per_token", "num_experts_per_tok"), int),
        sliding_window=keys.number("sliding_window", int),
        layer_types=tuple(alternating(layers)),
        max_position_embeddings=int(context * factor),
        rope=rope,
    )


def alternating(layers: int) -> list[str]:
    """The layer types of gpt-oss: sliding and full in turn, a sliding layer first. No more than a model can have."""
    most = int(BELIEVED["num_hidden_layers"][1])
    return [SLIDING if layer % 2 == 0 else FULL for layer in range(min(layers, most))]


def _token_ids(keys: _Keys) -> tuple[int, ...]:
    """eos_token_id is a number, a list of numbers, or absent."""
    try:
        return token_ids(keys.raw.get("eos_token_id"))
    except ValueError as problem:
        keys.problems.append(f"eos_token_id: {problem}")
        return ()


def token_ids(value: Any, vocab_size: int | None = None) -> tuple[int, ...]:
    """The ids that a value of JSON means: a number or a list of them; null means none. Raises ValueError."""
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(token) is int for token in ids):
        raise ValueError(f"found {shown(value)}, expected an integer or a list of them")
    if vocab_size is not None and (wrong := [token for token in ids if not 0 <= token < vocab_size]):
        raise ValueError(f"found {shown(wrong)}, expected ids below vocab_size ({vocab_size})")
    return tuple(ids)


def violations(config: ModelConfig) -> list[str]:
    """What is wrong with the sizes of a model: one line for each problem, none for a model that can be built."""
    found: list[str] = []
    for owner, prefix in ((config, ""), (config.rope, "rope.")):
        for field in dataclasses.fields(owner):
            value = getattr(owner, field.name)
            unused = field.name == "sliding_window" and SLIDING not in config.layer_types
            kind, _, optional = str(field.type).partition(" | ")
            if kind not in ("int", "float") or unused or (optional and value is None):
                continue
            good = isinstance(value, (int, float)) and (kind == "float" or isinstance(value, int))
            least, most = BELIEVED[f"{prefix}{field.name}"]
            if not good or isinstance(value, bool) or not 0 < value < math.inf:
                found.append(f"{prefix}{field.name}: found {shown(value)}, expected a finite {kind} above 0")
            elif not least <= value <= most:
                found.append(f"{prefix}{field.name}: found {shown(value)}, expected {least:g} to {most:g}")
    if not isinstance(config.rope.truncate, bool):
        found.append(f"rope.truncate: found {shown(config.rope.truncate)}, expected true or false")
    if not isinstance(config.experts_format, str) or config.experts_format not in FORMATS:
        found.append(f"experts_format: found {shown(config.experts_format)}, expected {', '.join(FORMATS)}")
    if found:
        return found
    form = config.expert_format
    for name in ("hidden_size", "intermediate_size"):
        if (size := getattr(config, name)) % form.group:
            found.append(f"{name}: found {size}, expected a multiple of {form.group} (experts in {form.name.upper()})")
    if config.num_attention_heads % config.num_key_value_heads:
        found.append(
            f"num_attention_heads: found {config.num_attention_heads}, expected a multiple of "
            f"num_key_value_heads ({config.num_key_value_heads})"
        )
    if config.head_dim % 2:
        found.append(f"head_dim: found {config.head_dim}, expected an even number (RoPE rotates halves)")
    if config.num_experts_per_tok > config.num_local_experts:
        found.append(
            f"num_experts_per_tok: found {config.num_experts_per_tok}, expected at most "
            f"num_local_experts ({config.num_local_experts})"
        )
    if len(config.layer_types) != config.num_hidden_layers:
        found.append(
            f"layer_types: {len(config.layer_types)} entries, expected num_hidden_layers ({config.num_hidden_layers})"
        )
    if unknown := sorted(set(config.layer_types) - {SLIDING, FULL}):
        found.append(f"layer_types: found {', '.join(unknown[:3])}, expected {SLIDING} or {FULL}")
    if config.rope.theta <= 1 or config.rope.factor < 1:
        found.append(
            f"rope: theta {config.rope.theta}, factor {config.rope.factor}; expected theta above 1 and "
            "factor of 1 or more"
        )
    try:
        token_ids(list(config.eos_token_ids) or None, config.vocab_size)
    except ValueError as problem:
        found.append(f"eos_token_id: {problem}")
    return found
