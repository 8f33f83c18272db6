"""The assistant: config, model, processor, projectors, assembly, adapters and model directories."""
