"""What the runtime does with CUDA beyond torch's calls: streams, graph edges, uploads, memory settings."""
