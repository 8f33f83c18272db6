"""What a run measures: per step, before it (operations, peak), and how it is shown."""
