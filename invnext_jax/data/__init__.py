"""Videos to batches of uint8 clips, and the embedded world they may come from; numpy and grain."""
