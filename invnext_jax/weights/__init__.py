"""Safetensors files of parameters, in the formats of this package and of other projects."""
