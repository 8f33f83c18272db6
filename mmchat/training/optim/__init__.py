"""What is trained and how: trainable modules, parameter groups, optimizer, schedule, LoRA and EMA."""
