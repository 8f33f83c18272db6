"""Features of frozen towers, computed once and read in every later pass."""
