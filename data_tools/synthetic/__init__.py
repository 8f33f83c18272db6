"""The data engine: images of text and charts whose content is known, because it was drawn from it."""
