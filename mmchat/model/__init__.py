"""The assistant: towers, projectors, splice, language model; its processor; its assembly."""
