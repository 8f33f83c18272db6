"""Objectives: what a run optimizes. Each owns its model, forward pass and loss."""
