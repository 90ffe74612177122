"""A GPU through the CUDA driver: its memory, streams and graphs. Needs no torch."""
