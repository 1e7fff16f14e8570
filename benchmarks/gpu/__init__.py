"""Parts of the GPU check. Each part runs in a separate process."""
