"""Checkpoints: written atomically, verified, and resharded for another number of ranks."""
