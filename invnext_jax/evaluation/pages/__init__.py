"""Web pages: reports of runs, example clips of a data set, and comparisons of evaluations."""
