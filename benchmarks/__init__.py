"""What the training step costs, against a named peer in the same run."""
