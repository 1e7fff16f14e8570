"""Evaluators of frozen encoders, one file for each evaluator."""
