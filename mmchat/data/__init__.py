"""From files to batches: records, their order, encoding in workers, collation. Never a `nn.Module`."""
