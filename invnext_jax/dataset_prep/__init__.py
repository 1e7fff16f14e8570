"""Prepares data sets: indexes, probes, re-encodes and shards videos."""
