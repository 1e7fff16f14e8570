"""Trained heads on the tokens of a frozen encoder (linen modules), and their losses."""
