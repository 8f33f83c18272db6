"""Questions with an image to start with, from a folder of images."""

import json
from pathlib import Path
from typing import Any

import gradio as gr

from mmchat.constants import IMAGE_PLACEHOLDER
from web_chat.widgets import DESCRIBE

EXAMPLES = 6
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_examples(folder: Path | None) -> list[dict[str, Any]]:
    """Examples of a folder: its images, each with a question.

    The question is that of a text file of the same name (`a.png`, `a.txt`), else the first that `FOLDER.json`, LLaVA's
    JSON next to the folder, asks about the image, else `DESCRIBE`. Gradio serves this folder's files to everyone who
    reaches the page.

    Args:
        folder: The folder; None has no examples.

    Returns:
        As `gr.Chatbot` takes them.
    """
    if folder is None:
        return []
    gr.set_static_paths([folder])
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:EXAMPLES]
    asked = _first_questions(folder.with_name(f"{folder.name}.json"))
    examples = []
    for path in images:
        text = path.with_suffix(".txt")
        written = text.read_text(encoding="utf-8").strip() if text.exists() else ""
        question = written or asked.get(f"{folder.name}/{path.name}") or DESCRIBE
        examples.append({"text": question, "files": [str(path)], "icon": str(path)})
    return examples


def _first_questions(table: Path) -> dict[str, str]:
    """The first question about each image of LLaVA's JSON; none if the file is another one, or missing."""
    try:
        records = json.loads(table.read_text(encoding="utf-8"))
        asked = {record["image"]: record["conversations"][0]["value"] for record in records}
        return {image: text.replace(IMAGE_PLACEHOLDER, "").strip() for image, text in asked.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
