"""Damaged and hostile files in bounded numbers, by seed. `python -m tests.fuzzing --help` runs them."""
