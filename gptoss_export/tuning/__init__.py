"""Finds the fastest launch configs of the kernels on the GPU at hand: `gptoss-export tune`."""
