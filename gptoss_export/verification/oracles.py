"""Oracles: other implementations of the model, whose logits an artifact's are compared with.

  transformers   Hugging Face's model with eager attention
  reference      this project's decoder, run eagerly over the references of its ops. It needs no other software, but it
                 shares the decoder with what it checks

Both have the weights that a build of the checkpoint has. Where a build rounds experts to MXFP4, the oracles use the
rounded experts too. So `verify` shows what compiling changed, and not what rounding changed.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..artifact.programs import Sizes, kv_cache_names, kv_inputs, page_table_names
from ..checkpoint import Checkpoint
from ..checkpoint.adapter import AddedAdapter
from ..compiler.export import build_model
from ..errors import UsageError
from ..model.decoder import Caches, GptOss, Pages, yarn_inv_freq
from ..model.dtypes import dtype_name, torch_dtype
from ..model.kv_cache import pages_for
from ..model.ops.norm import rms_norm
from ..model.parameters import INV_FREQ
from .near_ties import Routing, other_side


@dataclass(frozen=True)
class OracleOutput:
    """logits: position -> [V] float32 on the CPU, for the positions that were asked for. routing: of all tokens."""

    logits: dict[int, torch.Tensor]
    routing: Routing


class Oracle(ABC):
    """A model that runs a whole sequence."""

    @abstractmethod
    def run(self, tokens: Sequence[int], rows: Sequence[int], near_tie: float = 0.0) -> OracleOutput:
        """Run a sequence; the logits after its tokens at the positions `rows`.

        near_tie  router margins below it are decided the other way (near_ties.other_side)
        """

    def add(self, adapter: AddedAdapter) -> None:
        """Add an adapter to the weights."""
        raise NotImplementedError(f"{type(self).__name__} takes no adapter")


def check_oracle(name: str) -> None:
    """Raise UsageError where there is no such oracle, or where it is not installed."""
    if name not in _ORACLES:
        raise UsageError(f"--oracle {name}: expected {' or '.join(_ORACLES)}")
    if name == "transformers" and importlib.util.find_spec("transformers") is None:
        raise UsageError(
            "--oracle transformers: transformers is not installed; "
            "run: pip install 'gptoss-export[verify]', or use --oracle reference"
        )


def check_takes_adapter(name: str) -> None:
    """Raise UsageError where `Oracle.add` of the oracle called `name` is not implemented."""
    if _ORACLES[name].add is Oracle.add:
        raise UsageError(f"--oracle {name}: takes no --adapter of an artifact with adapter slots; use transformers")


def open_oracle(name: str, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Oracle:
    """The oracle called `name` with the weights that a build of the checkpoint has.

    Raises UsageError as `check_oracle`, CheckpointError."""
    check_oracle(name)
    return _ORACLES[name](checkpoint, dtype, device)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No warnings and progress bars of transformers. Its settings are those of the process, and are restored."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class TransformersOracle(Oracle):
    """Hugging Face's model, in one pass over the sequence."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        with _quiet_transformers():
            self._model: Any = checkpoint.transformers_model(dtype, device).eval()
        self._device = device
        self._layers: list[Routing] = []
        self._near_tie = 0.0
        for layer in self._model.model.layers:
            layer.mlp.router.register_forward_hook(self._record)

    def add(self, adapter: AddedAdapter) -> None:
        adapter.add_to(self._model)

    def _record(self, module: torch.nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Keep the routing of a layer. Returns the router's outputs, changed where near ties are decided otherwise."""
        logits, weights, chosen = outputs
        if self._near_tie:
            chosen = other_side(logits, chosen, self._near_tie)
            weights = logits.gather(-1, chosen).softmax(dim=-1, dtype=weights.dtype)
        self._layers.append(Routing.of_layer(logits, chosen))
        return logits, weights, chosen

    @torch.inference_mode()
    def run(self, tokens: Sequence[int], rows: Sequence[int], near_tie: float = 0.0) -> OracleOutput:
        self._layers.clear()
        self._near_tie = near_tie
        ids = torch.tensor([list(tokens)], device=self._device)
        hidden = self._model.model(ids, use_cache=False).last_hidden_state[0]
        logits = self._model.lm_head(hidden[torch.tensor(list(rows), device=self._device)]).float().cpu()
        return OracleOutput(dict(zip(rows, logits, strict=True)), Routing.of_layers(self._layers))


class ReferenceOracle(Oracle):
    """This project's decoder, in chunks, so that the scores of the reference attention stay small."""

    CHUNK = 128

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        self._config, self._device, self._dtype = checkpoint.config, device, dtype
        self._model: GptOss = build_model(self._config, dtype).to_empty(device=device)
        parameters = dict(self._model.named_parameters())
        for _, group in checkpoint.converted_groups():
            for name, value in group.items():
                parameters[name].data.copy_(value)
            del group  # so that one layer of the checkpoint is in memory at a time
        parameters[INV_FREQ].data.copy_(yarn_inv_freq(self._config.rope, self._config.head_dim))
        self._layers: list[Routing] = []
        self._near_tie = 0.0
        mlp: Any
        for mlp in (layer.mlp for layer in self._model.model.layers):
            mlp.register_forward_hook(self._record)

    def _record(self, module: torch.nn.Module, inputs: tuple[Any, ...], outputs: torch.Tensor) -> torch.Tensor:
        """Keep the routing of a layer. Returns what its experts give, where near ties are decided otherwise too."""
        x, norm = inputs[:2]
        mlp: Any = module
        normed = rms_norm(x, norm.weight, norm.eps)
        logits = torch.nn.functional.linear(normed, mlp.router.weight.float(), mlp.router.bias.float())
        chosen = logits.sort(dim=-1, descending=True, stable=True).indices[:, : self._config.num_experts_per_tok]
        if self._near_tie:
            chosen = other_side(logits, chosen, self._near_tie)
            outputs = x + torch.ops.gptoss.experts(
                x=normed.to(norm.weight.dtype),
                routing_weights=logits.gather(-1, chosen).softmax(dim=-1),
                expert_indices=chosen,
                **mlp.experts.by_argument(),
                alpha=mlp.alpha,
                limit=mlp.limit,
            )
        self._layers.append(Routing.of_layer(logits, chosen))
        return outputs

    @torch.inference_mode()
    def run(self, tokens: Sequence[int], rows: Sequence[int], near_tie: float = 0.0) -> OracleOutput:
        self._near_tie = near_tie
        caches, pages = self._empty_cache(len(tokens))
        slots = torch.zeros(1, dtype=torch.int64, device=self._device)
        found: dict[int, torch.Tensor] = {}
        pieces: list[Routing] = []
        for start in range(0, len(tokens), self.CHUNK):
            piece = torch.tensor([list(tokens[start : start + self.CHUNK])], device=self._device)
            end = start + piece.size(1)
            self._layers.clear()
            positions = torch.arange(start, end, device=self._device)[None]
            hidden = self._model.backbone(piece, positions, slots, pages, caches)
            pieces.append(Routing.of_layers(self._layers))
            for row in rows:
                if start <= row < end:
                    found[row] = self._model.unembed(hidden[row - start][None])[0][0].cpu()
        return OracleOutput({row: found[row] for row in rows}, Routing.join(pieces))

    def _empty_cache(self, length: int) -> tuple[Caches, Pages]:
        """The caches of one sequence of `length` tokens, which gives nothing back, and its pages."""
        count = pages_for(length)
        specs = kv_inputs(self._config, Sizes((1,), length, (self.CHUNK,)), dtype_name(self._dtype))
        tensors = {
            item.name: torch.zeros(item.sizes(count + 1), dtype=torch_dtype(item.dtype), device=self._device)
            for item in specs
        }
        table = torch.arange(1, count + 1, dtype=torch.int32, device=self._device)[None]
        caches = [(tensors[k], tensors[v]) for k, v in kv_cache_names(self._config)]
        return caches, dict.fromkeys(page_table_names(self._config), table)


_ORACLES: dict[str, type[TransformersOracle] | type[ReferenceOracle]] = {
    "transformers": TransformersOracle,
    "reference": ReferenceOracle,
}
