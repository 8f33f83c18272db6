"""One reader for each published layout: streams that yield `Converted` records and `Skipped` items."""
