"""The command line: words into a config, a config into one call."""
