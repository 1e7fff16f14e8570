"""Flax linen modules. Their fields are plain values, which `from_config` sets."""
