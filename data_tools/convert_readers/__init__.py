"""One reader for each published layout: streams that yield `Found` records and `Skipped` items."""
