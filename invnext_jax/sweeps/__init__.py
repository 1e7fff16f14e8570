"""Runs many trainings and evaluations, compares their results and estimates their cost."""
