"""Benchmarks. Each one compares this package with other libraries in the same run."""
