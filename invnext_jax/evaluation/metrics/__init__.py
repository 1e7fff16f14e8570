"""Metrics: functions of NumPy arrays without state, one file for each family."""
