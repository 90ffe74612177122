"""What is computed: the config, the decoder over its ops, MXFP4, the KV cache. Plain PyTorch."""
