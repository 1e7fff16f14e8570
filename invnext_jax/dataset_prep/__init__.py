"""Writing data sets: indexing, probing, re-encoding and sharding videos."""
