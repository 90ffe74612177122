"""How ranks share a model: tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053), and for the experts expert
parallelism (Lepikhin et al. 2020, arXiv:2006.16668) if it is wanted.

A rank is one process with one device. Each rank computes a part of every layer, and the results of all ranks are
summed after each sublayer, so that every rank has the whole residual stream.

  attention    a rank has some of the key and value heads, and the query heads and sinks that belong to them
  experts      a rank has some of the columns between the two matrices of every expert. They are divided in groups
               (`ExpertFormat.group`) that share a scale: the first ranks have a group more where they do not divide
               evenly. A gate and its up stay together.
               Or (`by_expert`) a rank has some consecutive experts, whole. A token then reads its experts on the ranks
               that have them: good where many tokens keep all ranks busy
  unembedding  a rank has the logits of some consecutive tokens; the last rank has the rest
  the others   (embedding, norms, router) are whole on every rank

A bias that is added to a sum over the ranks counts once: on rank 0. The other ranks have zeros. Those of whole experts
are where the experts are.

Imports no torch: a manifest is checked where there is none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .config import ModelConfig
from .expert_formats import ExpertTensor
from .parameters import UNEMBEDDING, layer_of

GROUP = "gptoss_export_ranks"  # the process group of the ranks, which compiled programs look up when they run
MOST_RANKS = 8  # GPUs of a host that reach each other's memory
_COUNT_ONCE = ("self_attn.o_proj.bias", "mlp.experts.down_proj_bias")
_NOT_COMPILED = ("whole", "rank", "program_rank")


class Sharing(NamedTuple):
    """How many ranks share a model, and whether experts are divided as a whole."""

    ranks: int = 1
    by_expert: bool = False


class Slice(NamedTuple):
    """A slice of a tensor: the indices from `start` to before `stop` of one dimension."""

    dim: int
    start: int
    stop: int


@dataclass(frozen=True)
class RankConfig(ModelConfig):
    """The part of a model that one rank computes.

    The heads and intermediate_size are the rank's; all other sizes are those of the whole model.

    whole         the model
    rank          0 to `ranks` - 1
    sharing       how it is divided
    tokens        those whose logits the rank computes
    experts       those that the rank has
    program_rank  the first rank with parts of the same sizes: they run the same programs
    """

    whole: ModelConfig | None = None
    rank: int = 0
    sharing: Sharing = field(default_factory=Sharing)
    tokens: int = 0
    experts: int = 0
    program_rank: int = 0

    @property
    def ranks(self) -> int:
        return self.sharing.ranks

    @property
    def by_expert(self) -> bool:
        return self.sharing.by_expert

    @property
    def held_experts(self) -> int:
        return self.experts

    @property
    def unembedded_tokens(self) -> int:
        return self.tokens

    def to_json(self) -> dict[str, Any]:
        """What programs depend on: ranks that run the same programs have the same."""
        return {name: value for name, value in super().to_json().items() if name not in _NOT_COMPILED}

    def slices(self, name: str, shape: tuple[int, ...]) -> tuple[Slice, ...]:
        """The parts of a weight of the model that the rank has, each along one dimension. Empty: it has zeros.

        shape  of the whole weight
        """
        assert self.whole is not None
        config, rank = self.whole, self.rank
        everything = (Slice(0, 0, shape[0]),)
        if name == UNEMBEDDING[1]:
            tokens = _consecutive(config.vocab_size, rank, self.ranks)
            return (Slice(0, tokens.start, tokens.stop),)
        kind = name.split(".", 3)[3] if layer_of(name) is not None else ""
        of_experts = self._of_experts(kind)
        if self.by_expert and kind.startswith("mlp.experts."):
            held = _consecutive(config.num_local_experts, rank, self.ranks)
            whole = of_experts is not None and not of_experts.columns
            return everything if whole else (Slice(0, held.start, held.stop),)
        if kind in _COUNT_ONCE:
            return everything if rank == 0 else ()
        dim, heads, kv_heads = self.head_dim, self.num_attention_heads, self.num_key_value_heads
        inner = _inner_columns(config, rank, self.ranks)
        gates = (Slice(1, 2 * inner.start, 2 * inner.stop),)
        if of_experts is not None:
            if not of_experts.columns:
                return everything
            if kind.startswith("mlp.experts.gate_up_proj"):
                return gates
            return (Slice(2, inner.start // of_experts.columns, inner.stop // of_experts.columns),)
        keys = config.num_attention_heads * dim
        values = keys + config.num_key_value_heads * dim
        qkv = (
            _part(0, 0, heads * dim, rank),
            _part(0, keys, kv_heads * dim, rank),
            _part(0, values, kv_heads * dim, rank),
        )
        divided = {
            "self_attn.sinks": (_part(0, 0, heads, rank),),
            "self_attn.qkv_proj.weight": qkv,
            "self_attn.qkv_proj.bias": qkv,
            "self_attn.o_proj.weight": (_part(1, 0, heads * dim, rank),),
            "mlp.experts.gate_up_proj_bias": gates,
        }
        return divided.get(kind, everything)

    def _of_experts(self, kind: str) -> ExpertTensor | None:
        """The tensor of the experts' format that a weight of a layer is."""
        stems = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
        return next(
            (item for item in self.expert_format.tensors if kind in [stem + item.suffix for stem in stems]), None
        )


def division_problems(config: ModelConfig, sharing: Sharing) -> list[str]:
    """Why a model cannot be shared like this; empty where it can."""
    ranks, found = sharing.ranks, []
    if config.num_key_value_heads % ranks:
        found.append(f"num_key_value_heads: found {config.num_key_value_heads}, expected a multiple of {ranks}")
    group = config.expert_format.group
    if sharing.by_expert:
        if not _consecutive(config.num_local_experts, ranks - 1, ranks):
            found.append(
                f"num_local_experts: found {config.num_local_experts}, which do not leave one for the last of {ranks} "
                f"ranks where each has {-(-config.num_local_experts // ranks)}"
            )
    elif config.intermediate_size < ranks * group:
        found.append(
            f"intermediate_size: found {config.intermediate_size}, expected {ranks * group} or more, "
            f"{group} for each rank"
        )
    if not _consecutive(config.vocab_size, ranks - 1, ranks):
        found.append(f"vocab_size: found {config.vocab_size}, expected enough tokens for each rank to have some")
    return found


def rank_configs(config: ModelConfig, sharing: Sharing) -> tuple[ModelConfig, ...]:
    """What each rank computes; the config itself where one rank computes the whole model. `division_problems` found
    nothing."""
    return (config,) if sharing.ranks == 1 else tuple(_rank_configs(config, sharing))


def program_configs(config: ModelConfig, sharing: Sharing) -> tuple[ModelConfig, ...]:
    """The parts that programs are compiled for: those of `rank_configs` that differ in their sizes."""
    if sharing.ranks == 1:
        return (config,)
    return tuple(found for found in _rank_configs(config, sharing) if found.program_rank == found.rank)


def share_of_first(count: int, config: ModelConfig) -> int:
    """How many of `count` consecutive things the first of the config's ranks has: the others have as many, and the last
    one what is left."""
    return -(-count // config.ranks)


def _rank_configs(config: ModelConfig, sharing: Sharing) -> list[RankConfig]:
    ranks = sharing.ranks
    whole = {item.name: getattr(config, item.name) for item in dataclasses.fields(ModelConfig)}
    found: list[RankConfig] = []
    for rank in range(ranks):
        sizes = {
            "num_attention_heads": config.num_attention_heads // ranks,
            "num_key_value_heads": config.num_key_value_heads // ranks,
        }
        if not sharing.by_expert:
            sizes["intermediate_size"] = len(_inner_columns(config, rank, ranks))
        experts = config.num_local_experts
        if sharing.by_expert:
            experts = len(_consecutive(experts, rank, ranks))
        tokens = len(_consecutive(config.vocab_size, rank, ranks))
        made = RankConfig(**{**whole, **sizes}, whole=config, sharing=sharing, tokens=tokens, experts=experts)
        same = [other.rank for other in found if other.to_json() == made.to_json()]
        found.append(dataclasses.replace(made, rank=rank, program_rank=same[0] if same else rank))
    return found


def _part(dim: int, begin: int, size: int, rank: int) -> Slice:
    return Slice(dim, begin + rank * size, begin + (rank + 1) * size)


def _inner_columns(config: ModelConfig, rank: int, ranks: int) -> range:
    """The columns between the matrices of an expert that a rank has: whole groups."""
    group = config.expert_format.group
    each, more = divmod(config.intermediate_size // group, ranks)
    start = rank * each + min(rank, more)
    return range(start * group, (start + each + (rank < more)) * group)


def _consecutive(count: int, rank: int, ranks: int) -> range:
    """Those of a rank among `count` things, as `share_of_first` divides them."""
    each = -(-count // ranks)
    return range(min(rank * each, count), min((rank + 1) * each, count))
