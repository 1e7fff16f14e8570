"""Flax linen modules. Their fields are plain values that `from_config` reads from the config."""
