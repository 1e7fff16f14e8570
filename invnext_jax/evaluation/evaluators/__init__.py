"""Evaluators of a frozen encoder, one file each."""
