"""Feature extraction: frozen towers run once, before the first step, and fill the feature cache."""
