"""Constants that several packages share."""

IGNORE_INDEX = -100
"""Label of a position that is not supervised (the `ignore_index` of `torch.nn.functional.cross_entropy`)."""

IMAGE_PLACEHOLDER = "<image>"
"""Marks the place of an image in a message of the LLaVA data dialect."""

IMAGE_BREAK = "\n"
"""Between an image and the text or image next to it in LLaVA's data (`<image>\\nWhat is this?`). The chat dialect does
not spell it, so it is written there."""

OCR_PROMPT = "Provide the ocr results of this image."
"""The prompt for the text of a page, in training data and in `mmchat ocr`. From Vary's demo (Ucas-HaoranWei/Vary,
vary/demo/run_qwen_vary.py)."""
