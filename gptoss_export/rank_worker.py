"""The process of a rank other than 0 (ranks/).

    python -m gptoss_export.rank_worker FD

FD is the socket to rank 0.
"""

from __future__ import annotations

import signal
import socket
import sys

from .loading import load_rank
from .ranks.following import serve_rank


def main(descriptor: int) -> None:
    """Be a rank until rank 0 ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to rank 0, which ends the others
    serve_rank(socket.socket(fileno=descriptor), load_rank)


if __name__ == "__main__":
    main(int(sys.argv[1]))
