"""Foreign assistant formats: one file per format."""
