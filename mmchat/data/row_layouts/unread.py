"""Layouts that are known and not read: one line that names the layout and what to do."""

from collections.abc import Mapping
from typing import Any

from mmchat.errors import UserError

CONVERT = "convert it with data_tools/convert.py"
UNREAD = (
    (("question", "answers"), f"is a question with several answers; {CONVERT} vqav2, textvqa or docvqa"),
    (("question", "choices"), "is a question with a list of choices; write them into the question"),
    (("imgname", "query"), f"is a question of ChartQA; {CONVERT} chartqa"),
    (("contents",), "is Gemini's layout; store its turns as messages with role and content"),
)
"""(Keys, what a row that has them is, and what to do). The first that fits counts."""
WITHOUT_IMAGE = (
    (("image_id", "caption"), f"is an annotation of COCO, whose images are listed apart; {CONVERT} coco_captions"),
    (("question_id", "image_id"), f"is a question of VQAv2, whose answers are apart; {CONVERT} vqav2"),
)
"""Likewise, of rows without an image."""


def refuse_unread(row: Mapping[str, Any], has_image: bool) -> None:
    """Raises UserError if the row has a known layout that is not read."""
    for keys, message in UNREAD + (() if has_image else WITHOUT_IMAGE):
        if all(row.get(key) is not None for key in keys):
            raise UserError(message)
