"""Metrics files, progress, throughput, profiling and the watchdog of a run."""
