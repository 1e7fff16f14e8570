"""Files of an evaluation: extracted features in chunks, and the states of trainings."""
