"""The runtime's tensors without torch's Python: libtorch calls programs, the CUDA driver does the rest."""
