"""The data engine: pictures of text and charts whose content is known, because it was drawn from it."""
