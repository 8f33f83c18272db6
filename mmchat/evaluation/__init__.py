"""Scores: pure metrics, tasks that run a model over records, reports."""
