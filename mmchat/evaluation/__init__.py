"""Evaluation: metrics as pure functions, tasks that run a model on records, reports."""
