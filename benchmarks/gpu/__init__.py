"""Parts of the GPU check. Each one runs in a process of its own."""
