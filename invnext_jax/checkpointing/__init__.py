"""Saving and restoring runs: Orbax checkpoints, checksums, run metadata and the workdir lock."""
