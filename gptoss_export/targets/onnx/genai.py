"""genai_config.json: what onnxruntime-genai has to know of model.onnx to generate with it."""

from __future__ import annotations

import json
from pathlib import Path

from ..target import Plan
from .compile import MODEL, PORTABLE, SESSION_OPTIONS

NAME = "genai_config.json"


def write_genai_config(plan: Plan) -> Path:
    """Greedy search up to the context; returns the file's name."""
    config, context = plan.config, plan.shapes.max_context
    providers = [{"cuda": {"enable_cuda_graph": "0"}}] if plan.device == "cuda" else []
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": providers, **SESSION_OPTIONS},
        "filename": MODEL,
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
    }
    stops = list(plan.stop_tokens)
    data = {
        "model": {
            "type": "gptoss", "vocab_size": config.vocab_size, "context_length": context, "decoder": decoder,
            "eos_token_id": stops, "pad_token_id": stops[0] if stops else 0,
        },
        "search": {"max_length": context, "past_present_share_buffer": plan.arch != PORTABLE, "do_sample": False},
    }  # fmt: skip
    (plan.folder / NAME).write_text(json.dumps(data, indent=1) + "\n")
    return Path(NAME)
