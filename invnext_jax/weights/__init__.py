"""Safetensors files of parameters: the format of this package and those of other projects."""
