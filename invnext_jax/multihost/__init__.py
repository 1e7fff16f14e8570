"""Starts and coordinates the processes of a multi-host run."""
