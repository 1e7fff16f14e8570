"""Flax linen modules on arrays. Module fields are plain values, which `from_config` sets."""
