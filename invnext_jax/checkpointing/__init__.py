"""Saves and restores runs: Orbax checkpoints, checksums, run metadata and the workdir lock."""
