"""What gptoss_export finds by entry point: kernels that implement its ops on a particular machine.

One file an op. Nothing here is imported until a build for CUDA asks for it, so only these files may
import Triton at their top.
"""

from pathlib import Path

TABLES = Path(__file__).parent / "tables"  # measured cuts, a file for each GPU and Triton (gptoss_export/tables.py)
