"""Triton kernels for the ops of gptoss_export, one file an op.

gptoss_export finds them by entry point and imports them only for a build for NVIDIA GPUs. So this file must not
import Triton, and the other files may.
"""

from pathlib import Path

TUNED_CONFIGS = Path(__file__).parent / "tuned_configs"  # a file for each GPU and Triton version
