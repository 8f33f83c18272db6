"""Training: run config, trainability, DeepSpeed, the loop, checkpoints and meters."""
