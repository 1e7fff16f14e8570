"""Augmentation of uint8 clips on the devices, used to train probes."""
