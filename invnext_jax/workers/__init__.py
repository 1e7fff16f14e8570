"""Supervised worker processes: time limits, restarts, and results in order."""
