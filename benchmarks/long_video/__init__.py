"""Cost of training steps on long videos."""
