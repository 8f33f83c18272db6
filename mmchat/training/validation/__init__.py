"""Evaluations during a run: held-out loss and zero-shot accuracy."""
