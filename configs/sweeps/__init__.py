"""Sweeps: functions that yield chains of trainings and evaluations, see docs/sweeps.md."""
