"""Metrics of a run: measured, logged, drawn; and the guard against NaN losses."""
