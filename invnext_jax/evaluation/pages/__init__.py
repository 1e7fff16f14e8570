"""Web pages: the report of runs, the pictures of a data set, and comparisons of evaluations."""
