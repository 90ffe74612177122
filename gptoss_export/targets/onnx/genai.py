"""genai_config.json: what onnxruntime-genai has to know of model.onnx to generate with it."""

from __future__ import annotations

import json
from pathlib import Path

from ...machine_limits import writes
from ..base_compiler import CompileJob
from .model_files import (
    ATTENTION_MASK,
    INPUT_IDS,
    KEY,
    LOGITS,
    MODEL,
    SESSION_OPTIONS,
    VALUE,
    past_name,
    present_name,
)

NAME = "genai_config.json"
_LAYER = "%d"  # where onnxruntime-genai puts the number of the layer


def write_genai_config(job: CompileJob) -> Path:
    """Greedy search up to the context; returns the file's name."""
    config, context = job.config, job.sizes.max_context
    providers = [{"cuda": {"enable_cuda_graph": "0"}}] if job.device == "cuda" else []
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": providers, **SESSION_OPTIONS},
        "filename": MODEL,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": INPUT_IDS,
            "attention_mask": ATTENTION_MASK,
            "past_key_names": past_name(_LAYER, KEY),
            "past_value_names": past_name(_LAYER, VALUE),
        },
        "outputs": {
            "logits": LOGITS,
            "present_key_names": present_name(_LAYER, KEY),
            "present_value_names": present_name(_LAYER, VALUE),
        },
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
    }
    stops = list(job.stop_tokens)
    data = {
        "model": {
            "type": "gptoss",
            "vocab_size": config.vocab_size,
            "context_length": context,
            "decoder": decoder,
            "eos_token_id": stops,
            "pad_token_id": stops[0] if stops else 0,
        },
        "search": {
            "max_length": context,
            "past_present_share_buffer": not job.options.portable,
            "do_sample": False,
        },
    }
    with writes(job.folder / NAME):
        (job.folder / NAME).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return Path(NAME)
