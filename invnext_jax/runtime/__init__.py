"""The machine: mesh, train state, step, checkpoints, metrics; knows pytrees, not models."""
