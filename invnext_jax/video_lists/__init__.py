"""Readers of lists of videos: folders, tables, and the formats of published data sets."""
