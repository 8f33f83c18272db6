"""From files to batches: records, their order, encoding in workers, collation. Contains no `nn.Module`."""
