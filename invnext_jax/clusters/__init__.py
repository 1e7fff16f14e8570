"""Runs the jobs of a sweep on SLURM, and writes them as SkyPilot tasks and Kubernetes JobSets."""
