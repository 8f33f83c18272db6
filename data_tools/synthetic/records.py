"""One record of one question and one answer about an image, in LLaVA's layout."""

from typing import Any

from mmchat.constants import IMAGE_PLACEHOLDER

CHART_PROMPT = "Convert the key information of the chart to a python dict:"
"""Prompt of OneChart (arXiv:2404.09987), a Vary-tiny trained on charts."""


def image_path(folder: str, number: int, suffix: str) -> str:
    """Relative path of image `number`, a thousand images per folder."""
    return f"{folder}/{number // 1000:04}/{number:07}.{suffix}"


def make_record(record_id: str, image: str, prompt: str, answer: str, **extra: Any) -> dict[str, Any]:
    """A record in LLaVA's format with one question, which may be empty, and one answer."""
    turns = [
        {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{prompt}" if prompt else IMAGE_PLACEHOLDER},
        {"from": "gpt", "value": answer},
    ]
    return {"id": record_id, "image": image, "conversations": turns, **extra}
