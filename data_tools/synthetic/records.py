"""One record of one question and one answer about an image, in LLaVA's layout."""

from typing import Any

from mmchat.constants import IMAGE_PLACEHOLDER

CHART_PROMPT = "Convert the key information of the chart to a python dict:"
"""OneChart (arXiv:2404.09987), which is Vary-tiny taught on charts."""


def image_path(folder: str, number: int, suffix: str) -> str:
    """Where an image goes: a thousand in a folder."""
    return f"{folder}/{number // 1000:04}/{number:07}.{suffix}"


def record(identity: str, image: str, prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    """LLaVA's layout: one question, which may be empty, and one answer."""
    turns = [
        {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{prompt}" if prompt else IMAGE_PLACEHOLDER},
        {"from": "gpt", "value": answer},
    ]
    return {"id": identity, "image": image, "conversations": turns, **more}
