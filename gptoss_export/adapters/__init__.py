"""LoRA adapters as PEFT stores them: what their files say, without reading a number. Imports no torch: a build merges
adapters with it, and what runs an artifact loads them."""
