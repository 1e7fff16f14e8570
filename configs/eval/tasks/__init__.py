"""Configs with one evaluation each, for any manifest or data set."""
