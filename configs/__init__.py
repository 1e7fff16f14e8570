"""Config files. Each defines `get_config(variant)`; `common.py` has the defaults."""
