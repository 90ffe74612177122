"""The programs of an artifact: what each one takes and gives. This is the only description of them.

  decode_<B>     one token for each of B sequences   tokens [B], positions [B], slots [B], KV
                                                     -> as unembed_<B>, and next_positions [B]
  prefill_<C>    up to C tokens of sequences         tokens [C], positions [C], slots [S], KV  -> hidden [C, H]
  unembed_<R>    logits of R hidden states           hidden [R, H]
                                                     -> logits [R, V], top [R], top_logprob [R], log_total [R]
  choose_drawn     draws a token for each row        logits [R, V], log_total [R], positions [R], slots [R], state
                                                     -> tokens [R], logprobs [R]
  choose_limited   the same, by top_k and top_p      the same
  choose_adjusted  the same, from changed logits     -> tokens [R], logprobs [R], top [R, T], top_logprobs [R, T]
  all_logits     of several ranks: the logits of all tokens of the model
                                                     logits [R, those of a rank] -> logits [R, V]
  interleave     the codes of MXFP4 blocks as a GPU's kernels take them (model/mxfp4.py); runs at loading
                                                     words [R] -> interleaved [R]
  train_step     the loss of T tokens and the gradients of LoRA factors (model/training/); an artifact has it alone
                                                     tokens [T], targets [T], positions [T], factors
                                                     -> loss [], gradients

Tracing makes its inputs from it, the manifest stores it, the runner binds buffers by its names, `verify` and the
targets read it. A program takes its data first, then the tables of pages, the KV caches (written in place), what the
slots choose by, and the weights. All shapes are static but three: how many pages the caches have is chosen when the
artifact is loaded, and a choice and interleaving take any number of rows. An artifact with adapter slots has one kind
of input more, behind the weights of `decode` and `prefill`: the factors of LoRA adapters, and which adapter each
sequence uses (model/adapter_factors.py).

B is a width. An artifact has decode programs of several widths, and a step runs the smallest that its sequences fit in:
a step of few sequences does not pay for many. Position -1 marks a row without a sequence; it stays -1 in
next_positions. The most likely tokens and next_positions are the tokens and positions of the next step, so that such a
step is one program. Where tokens are drawn, a choice is the second one. A target that cannot compile a choice leaves it
out (`Compiler.programs`).

A prefill chunk has S segments of C / S tokens, and a segment holds tokens of one sequence. So the prompts of several
sequences share a chunk. Position -1 is padding behind the last token of a prompt.

A prefill returns hidden states and no logits: only the last token of a prompt needs the unembedding, while scoring a
text needs it for every token. Weights and caches are inputs, so that all programs share one copy of each.

Where ranks share the model (model/ranks.py), a program computes the part of one rank: its heads, and in `logits` those
of its tokens, [R, those of a rank]. Ranks with parts of the same sizes run the same programs.

Imports no torch, so that an artifact can be read where there is none.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from ..model.adapter_factors import ADAPTER_TABLE, adapter_factors
from ..model.config import ModelConfig
from ..model.kv_cache import PAGE, pages_for
from ..model.parameters import PLACES, UNEMBEDDING, parameters
from ..model.places import FIRST_MEMORY
from ..model.ranks import Sharing
from ..model.sampling_state import DRAWING, MOST_TOP_LOGPROBS, Choice, adjusting
from ..model.training.lora import Training, factors
from .calls import Role, Signature, TensorSpec

SEGMENT = 16  # tokens of a segment: with the 8 query heads of a key head, a tile of 128 rows for attention
SCORE_ROWS = 64  # rows of the second unembedding: enough that reading its matrix once pays


@dataclass(frozen=True)
class Sizes:
    """The static sizes of an artifact.

    widths          sequences that a decode step takes, one program for each width, in ascending order
    max_context     tokens that a sequence can hold
    prefill_chunks  tokens that a prefill call takes, one program for each, in ascending order
    ranks           processes that share the model, with a device each
    expert_parallel whether they have different experts, and not parts of each expert
    training        what the training step of the artifact is made for; None: it generates. An artifact that trains has
                    one sequence of as many tokens as a step
    adapter_slots   LoRA adapters that can be loaded at a time; 0: none
    adapter_rank    the largest rank that they have
    """

    widths: tuple[int, ...]
    max_context: int
    prefill_chunks: tuple[int, ...]
    ranks: int = 1
    expert_parallel: bool = False
    training: Training | None = None
    adapter_slots: int = 0
    adapter_rank: int = 0

    def to_json(self) -> dict[str, Any]:
        """The sizes by name. Those of adapters are left out where there are none, as before there were any."""
        found = dataclasses.asdict(self)
        return {name: found[name] for name in found if self.adapter_slots or not name.startswith("adapter_")}

    @property
    def max_batch(self) -> int:
        """Sequences that the artifact holds at a time: the largest width."""
        return self.widths[-1]

    @property
    def sharing(self) -> Sharing:
        """How ranks share the model."""
        return Sharing(self.ranks, self.expert_parallel)

    def width_for(self, sequences: int) -> int:
        """The smallest width that takes so many sequences."""
        return next(width for width in self.widths if width >= sequences)

    @property
    def table(self) -> tuple[int, int]:
        """The shape of a table of pages: slots, and the pages of a sequence of max_context tokens."""
        return self.max_batch, pages_for(self.max_context)


class Program(ABC):
    """One kind of program, with its size.

    likely_rows  of a call, where its rows are no constant. Code is made for about so many; it is right for any number
                 from 1 on
    of_any_rank  it is the same for all ranks that share a model
    in_order     its operations are in an order that takes little memory, and a compiler keeps it
    """

    likely_rows: ClassVar[int] = 3
    of_any_rank: ClassVar[bool] = False
    in_order: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that the program has in the artifact."""

    @abstractmethod
    def signature(self, config: ModelConfig, sizes: Sizes, dtype: str) -> Signature:
        """The call, for a model whose matrices are in `dtype`."""


@dataclass(frozen=True)
class Decode(Program):
    """The next token of `width` sequences."""

    width: int

    @property
    def name(self) -> str:
        return f"decode_{self.width}"

    def signature(self, config: ModelConfig, sizes: Sizes, dtype: str) -> Signature:
        data = (_ids("tokens", self.width), _ids("positions", self.width), _ids("slots", self.width))
        weights = _weights(config, dtype)
        outputs = (*_unembedded(config, self.width), _ids("next_positions", self.width))
        inputs = (*data, *kv_inputs(config, sizes, dtype), *weights, *adapter_inputs(config, sizes, dtype))
        return Signature(inputs, outputs)


@dataclass(frozen=True)
class Prefill(Program):
    """Up to `chunk` tokens of some sequences; the rest is padding."""

    chunk: int

    @property
    def segments(self) -> int:
        """How many sequences can share the chunk: one for SEGMENT tokens, and one alone where those do not divide the
        chunk."""
        return 1 if self.chunk % SEGMENT else self.chunk // SEGMENT

    @property
    def name(self) -> str:
        return f"prefill_{self.chunk}"

    def signature(self, config: ModelConfig, sizes: Sizes, dtype: str) -> Signature:
        data = (_ids("tokens", self.chunk), _ids("positions", self.chunk), _ids("slots", self.segments))
        weights = tuple(item for item in _weights(config, dtype) if item.name not in UNEMBEDDING)
        inputs = (*data, *kv_inputs(config, sizes, dtype), *weights, *adapter_inputs(config, sizes, dtype))
        return Signature(inputs, (_hidden(config, self.chunk),))


@dataclass(frozen=True)
class Unembed(Program):
    """The logits of `rows` hidden states."""

    rows: int

    @property
    def name(self) -> str:
        return f"unembed_{self.rows}"

    def signature(self, config: ModelConfig, sizes: Sizes, dtype: str) -> Signature:
        weights = tuple(item for item in _weights(config, dtype) if item.name in (*UNEMBEDDING, PLACES))
        return Signature((_hidden(config, self.rows), *weights), _unembedded(config, self.rows))


@dataclass(frozen=True)
class Choose(Program):
    """The next token of any number of rows, drawn at random where a slot's temperature is above 0.

    With Choice.ADJUSTED the most likely tokens are returned too.
    """

    of_any_rank = True

    choice: Choice

    @property
    def name(self) -> str:
        return f"choose_{self.choice.name.lower()}"

    def signature(self, config: ModelConfig, sizes: Sizes, dtype: str) -> Signature:
        vocabulary, slots = config.vocab_size, sizes.max_batch
        data = (
            TensorSpec("logits", Role.DATA, (None, vocabulary), "float32"),
            TensorSpec("log_total", Role.DATA, (None,), "float32"),
            _ids("positions", None),
            _ids("slots", None),
        )
        adjusted = self.choice == Choice.ADJUSTED
        kinds = (*DRAWING, *adjusting(vocabulary)) if adjusted else DRAWING
        state = (TensorSpec(f"sampling.{kind.name}", Role.STATE, (slots, *kind.shape), kind.dtype) for kind in kinds)
        outputs = [_ids("tokens", None), TensorSpec("logprobs", Role.DATA, (None,), "float32")]
        if adjusted:
            most = min(MOST_TOP_LOGPROBS, vocabulary)
            outputs.append(TensorSpec("top", Role.DATA, (None, most), "int64"))
            outputs.append(TensorSpec("top_logprobs", Role.DATA, (None, most), "float32"))
        return Signature((*data, *state), tuple(outputs))


# The choices that need a program: the most likely token is an output of the model's.
CHOICES = tuple(Choose(choice) for choice in Choice if choice != Choice.MOST_LIKELY)


@dataclass(frozen=True)
class AllLogits(Program):
    """The logits of all tokens of the model, from those of each rank, of any number of rows."""

    @property
    def name(self) -> str:
        return "all_logits"

    def signature(self, config: ModelConfig, sizes: Sizes, dtype: str) -> Signature:
        of_rank, of_all = (
            TensorSpec("logits", Role.DATA, (None, tokens), "float32")
            for tokens in (config.unembedded_tokens, config.vocab_size)
        )
        places = TensorSpec(PLACES, Role.WEIGHT, (FIRST_MEMORY + config.ranks,), "int64")
        return Signature((of_rank, places), (of_all,))


@dataclass(frozen=True)
class Interleave(Program):
    """MXFP4 blocks of a checkpoint, any number of 64-bit words, to blocks with interleaved codes."""

    likely_rows = 1 << 21  # results need memory of their own, here 16 MB
    of_any_rank = True

    @property
    def name(self) -> str:
        return "interleave"

    def signature(self, config: ModelConfig, sizes: Sizes, dtype: str) -> Signature:
        return Signature((_ids("words", None),), (_ids("interleaved", None),))


@dataclass(frozen=True)
class Train(Program):
    """The loss of a row of tokens, and the gradients of all LoRA factors."""

    in_order = True

    training: Training

    @property
    def name(self) -> str:
        return "train_step"

    def signature(self, config: ModelConfig, sizes: Sizes, dtype: str) -> Signature:
        data = (_ids(name, self.training.tokens) for name in ("tokens", "targets", "positions"))
        trained = factors(config, self.training)
        given = (TensorSpec(item.name, Role.FACTOR, item.shape, "float32") for item in trained)
        gradients = (TensorSpec(f"{item.name}.gradient", Role.FACTOR, item.shape, "float32") for item in trained)
        loss = TensorSpec("loss", Role.DATA, (), "float32")
        return Signature((*data, *given, *_weights(config, dtype)), (loss, *gradients))


def default_widths(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `max_batch`."""
    doubled = (2**power for power in range(max_batch.bit_length()))
    return tuple(sorted({*doubled, max_batch}))


def programs_of(sizes: Sizes, device: str) -> tuple[Program, ...]:
    """The programs of an artifact of these sizes for a device."""
    interleave = (Interleave(),) if device == "cuda" else ()
    if sizes.training is not None:
        return (Train(sizes.training), *interleave)
    all_logits = (AllLogits(),) if sizes.ranks > 1 else ()
    return (*model_programs(sizes), *all_logits, *CHOICES, *interleave)


def model_programs(sizes: Sizes) -> tuple[Program, ...]:
    """Those that compute the model to generate. A target that compiles no others chooses tokens in another way."""
    return (
        *(Decode(width) for width in sizes.widths),
        *(Prefill(chunk) for chunk in sizes.prefill_chunks),
        Unembed(1),
        Unembed(SCORE_ROWS),
    )


def kv_cache_names(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    """The names of the key cache and of the value cache of each layer."""
    return tuple((f"k_cache.{layer}", f"v_cache.{layer}") for layer in range(config.num_hidden_layers))


def page_table_names(config: ModelConfig) -> dict[str, str]:
    """The name of the table of pages of each kind of layer that a model has."""
    return {kind: f"pages.{kind}" for kind in sorted(set(config.layer_types))}


def kv_inputs(config: ModelConfig, sizes: Sizes, dtype: str) -> tuple[TensorSpec, ...]:
    """The tables of pages, and the caches of all layers, keys before values."""
    tables = (TensorSpec(name, Role.TABLE, sizes.table, "int32") for name in page_table_names(config).values())
    shape = None, config.num_key_value_heads, PAGE, config.head_dim
    caches = (TensorSpec(name, Role.CACHE, shape, dtype) for names in kv_cache_names(config) for name in names)
    return (*tables, *caches)


def adapter_inputs(config: ModelConfig, sizes: Sizes, dtype: str) -> tuple[TensorSpec, ...]:
    """The table of adapters and the factors of all layers; nothing without adapter slots."""
    if not sizes.adapter_slots:
        return ()
    factors = adapter_factors(config, sizes.adapter_slots, sizes.adapter_rank, dtype)
    table = TensorSpec(ADAPTER_TABLE, Role.ADAPTER, (sizes.max_batch,), "int64")
    return (table, *(TensorSpec(item.name, Role.ADAPTER, item.shape, item.dtype) for item in factors))


def _ids(name: str, count: int | None) -> TensorSpec:
    return TensorSpec(name, Role.DATA, (count,), "int64")


def _hidden(config: ModelConfig, rows: int) -> TensorSpec:
    return TensorSpec("hidden", Role.DATA, (rows, config.hidden_size), "float32")


def _unembedded(config: ModelConfig, rows: int) -> tuple[TensorSpec, ...]:
    """What gptoss::unembed returns for `rows` rows."""
    return (
        TensorSpec("logits", Role.DATA, (rows, config.unembedded_tokens), "float32"),
        TensorSpec("top", Role.DATA, (rows,), "int64"),
        TensorSpec("top_logprob", Role.DATA, (rows,), "float32"),
        TensorSpec("log_total", Role.DATA, (rows,), "float32"),
    )


def _weights(config: ModelConfig, dtype: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item.name, Role.WEIGHT, item.shape, item.dtype) for item in parameters(config, dtype))
