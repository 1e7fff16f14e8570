"""Config files: each defines `get_config(variant)`. `common.py` holds every default."""
