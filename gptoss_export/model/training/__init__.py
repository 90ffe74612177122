"""The training step: LoRA factors are trained, and the model below stays as it is stored.

Every part has its forward and its backward, written out. `step.py` puts them together, `lora.py` says which factors
there are.
"""
