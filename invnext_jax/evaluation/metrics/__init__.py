"""Metrics: functions of NumPy arrays without state, one file for each family.

`formats` has the titles and the units of the metrics.
"""
