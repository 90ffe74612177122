"""Compares an artifact's logits with an oracle's on the same checkpoint: `gptoss-export verify`."""
