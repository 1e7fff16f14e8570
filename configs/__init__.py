"""Configurations: Python files with `get_config(variant)`; `common.py` holds every default."""
