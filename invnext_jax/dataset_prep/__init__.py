"""Writing data sets: reading lists, probing, indexing, re-encoding and sharding videos."""
