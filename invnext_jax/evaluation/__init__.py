"""Evaluation of frozen encoders: features, evaluators, baselines, export and reports."""
