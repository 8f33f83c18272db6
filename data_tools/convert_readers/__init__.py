"""One reader per published data format. Readers are generators of `Converted` records and `Skipped` items."""
