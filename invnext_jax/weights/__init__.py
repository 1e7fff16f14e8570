"""Parameter trees as files: our own layout and those of other projects."""
