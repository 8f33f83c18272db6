"""Numbers that several rooms share."""

IGNORE_INDEX = -100
"""Label of a position that is not supervised (the `ignore_index` of `torch.nn.functional.cross_entropy`)."""

IMAGE_PLACEHOLDER = "<image>"
"""Where an image stands in a message of the LLaVA data dialect."""
