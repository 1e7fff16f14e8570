"""The training stages: what a stage provides, what stages share, and one file for each stage."""
