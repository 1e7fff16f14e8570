"""Writes the jobs of a sweep as files for clusters that are started with other tools."""
