"""Flax linen modules: arrays in, arrays out. Fields are plain values; `from_config` sets them."""
