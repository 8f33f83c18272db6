"""Synthetic training data: images of text and charts, drawn from a known text or table."""
