"""Evaluators of frozen encoders. Each evaluator has its own file."""
