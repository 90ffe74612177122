"""An artifact whose model says what a test expects: the code of a built artifact, with weights made by hand.

To every prompt, with any temperature up to 1, the model answers in the chat format: an analysis message with the text
`Think`, then a final message with the text ANSWER.

How: layers add nothing to the residual stream, so that the logits follow from the last token alone. Each token of the
answer has a dimension of its own, and the row of its successor in lm_head reads it. One head of one full layer is
different: it writes a flag where `Think` is among the tokens before, which makes `final` follow `<|channel|>` in place
of `analysis`, and `Hello` follow `<|message|>` in place of `Think`.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gptoss_export.artifact.files import describe_file

ANALYSIS = "Think"
WORDS = ("Hello", ",", " I", " count", ":", " one", " two", " three", " four", " five", " six", " seven", " eight",
         " nine", " ten", ".")  # fmt: skip
ANSWER = "".join(WORDS)
ENDLESS_ANSWER_BEGINS = ANSWER + " one two three"  # of the endless artifact

_NAMES = ("assistant", "analysis", "final", ANALYSIS, *WORDS)
_FIRST_NAME = 256  # ids from here on have names that no text contains
_SHARPNESS = 20.0  # of the logits
_OTHER, _IS_THINK, _FLAG = 93, 94, 95  # dimensions of the residual stream, behind those of tokens
_FULL_LAYER = 1


def scripted_artifact(artifact: Path, folder: Path, endless: bool = False) -> Path:
    """Write the scripted twin of a tiny artifact. endless: after "." it goes on with " one", and never stops."""
    shutil.copytree(artifact, folder)
    ids = _rename_tokens(folder / "tokenizer.json")
    successors = _successors(ids, endless)
    for path in sorted((folder / "weights").glob("*.safetensors")):
        tensors = {name: torch.zeros_like(value) for name, value in load_file(path).items()}
        for name, value in tensors.items():
            _fill(name, value, successors, ids)
        path.unlink()
        save_file(tensors, path, metadata={"format": "pt"})
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        spec = describe_file(folder / name)
        manifest["files"][name] = {"bytes": spec.bytes, "sha256": spec.sha256, "pieces": list(spec.pieces)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _rename_tokens(path: Path) -> dict[str, int]:
    """Give some tokens of a tokenizer the texts of the answer. The ids of these, and of bytes and special tokens."""
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    by_id = {index: symbol for symbol, index in vocabulary.items()}
    for index, name in enumerate(_NAMES, start=_FIRST_NAME):
        by_id[index] = name.replace(" ", "\u0120")  # as byte-level tokenizers write a space
    tokenizer["model"]["vocab"] = {symbol: index for index, symbol in by_id.items()}
    path.write_text(json.dumps(tokenizer))
    return {symbol.replace("\u0120", " "): index for index, symbol in by_id.items()}


def _successors(ids: dict[str, int], endless: bool) -> list[tuple[int, int]]:
    """What follows each token of the answer where `Think` was not said; `_fill` has the rest."""
    message, channel = ids["<|message|>"], ids["<|channel|>"]
    words = [ids[word] for word in WORDS]
    pairs = [(ids["t"], channel), (ids["assistant"], channel)]  # "assistant" of the prompt is single bytes
    pairs += [(channel, ids["analysis"]), (ids["analysis"], message), (message, ids[ANALYSIS])]
    pairs += [(ids[ANALYSIS], ids["<|end|>"]), (ids["<|end|>"], ids["<|start|>"]), (ids["<|start|>"], ids["assistant"])]
    pairs += [(ids["final"], message), *pairwise(words)]
    return [*pairs, (words[-1], ids[" one"] if endless else ids["<|return|>"])]


def _fill(name: str, value: torch.Tensor, successors: list[tuple[int, int]], ids: dict[str, int]) -> None:
    dimension = {token: index for index, (token, _) in enumerate(successors)}
    assert len(dimension) == len(successors) <= _OTHER
    if name.endswith("norm.weight"):
        value.fill_(1)
    elif name == "model.embed_tokens.weight":
        value[:, _OTHER] = 1
        for token, index in dimension.items():
            value[token, _OTHER], value[token, index] = 0, 1
        value[ids[ANALYSIS], _IS_THINK] = 1
    elif name == "lm_head.weight":
        for token, successor in successors:
            value[successor, dimension[token]] = _SHARPNESS
        for token, successor in (("<|channel|>", "final"), ("<|message|>", "Hello")):
            value[ids[successor], dimension[ids[token]]] = 0.5 * _SHARPNESS
            value[ids[successor], _FLAG] = 0.35 * _SHARPNESS
    elif name.startswith(f"model.layers.{_FULL_LAYER}.self_attn."):
        slow = value.shape[0] if "o_proj" in name else 32 // 2 - 1  # the pair of dimensions that RoPE turns least
        if name.endswith("q_proj.bias"):
            value[slow] = 8
        elif name.endswith("k_proj.weight"):
            value[slow, _IS_THINK] = 2
        elif name.endswith("v_proj.weight"):
            value[0, _IS_THINK] = 6.93**-1  # one, after the norm
        elif name.endswith("o_proj.weight"):
            value[_FLAG, 0] = 2
