"""Training stages: their interface, the code that stages share, and one file for each stage."""
