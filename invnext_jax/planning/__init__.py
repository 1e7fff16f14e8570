"""FLOPs, memory, roofline and collectives of a run, computed from shapes."""
