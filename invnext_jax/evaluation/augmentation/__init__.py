"""Augmentation of uint8 clips on the devices, for probes that are trained with it."""
