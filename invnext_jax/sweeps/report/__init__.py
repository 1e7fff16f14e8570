"""The tables of a sweep: values over seeds, differences from a baseline, learning curves."""
