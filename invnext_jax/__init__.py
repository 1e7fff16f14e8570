"""InternVideo-Next in JAX: video foundation models pretrained without captions (arXiv 2512.01342)."""
