"""Files of an evaluation: extracted features in chunks, and the state of interrupted training."""
