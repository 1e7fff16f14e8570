"""InternVideo-Next (arXiv 2512.01342) in JAX: video models pretrained without captions."""
