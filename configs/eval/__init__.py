"""Configs of evaluations: all tasks of the synthetic world, and one file for each data set."""
