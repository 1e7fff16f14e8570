"""The read path: from a manifest row to a clip to a batch."""
