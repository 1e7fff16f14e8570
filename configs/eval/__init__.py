"""Configs of evaluations, one file for each evaluator."""
