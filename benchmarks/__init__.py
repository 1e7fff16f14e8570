"""Benchmarks: each compares this package with a named peer in the same run."""
