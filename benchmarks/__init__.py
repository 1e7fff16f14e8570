"""Benchmarks: each compares this package with another library in the same run."""
