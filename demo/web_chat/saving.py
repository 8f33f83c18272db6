"""A conversation as a file: to reopen it, as LLaVA's JSON, and as a page to share."""

import base64
import binascii
import io
import json
import zipfile
from typing import Any

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.errors import UserError
from mmchat.html import render
from mmchat.images import extension_of
from web_chat.conversation import Conversation, Turn
from web_chat.limits import Limits, UploadedImage, admit, check_text

FORMAT = "mmchat conversation 1"
Sides = list[tuple[str, Conversation]]
"""Conversations side by side, each after the name of the model that answers."""


def to_json(sides: Sides) -> str:
    """Conversations with the names of their models, with their images, each image once."""
    images: dict[str, str] = {}
    names: dict[bytes, str] = {}
    saved = []
    for model, conversation in sides:
        turns = []
        for turn in conversation.turns:
            if turn.state == "asked":
                continue
            for image in turn.images:
                if image.data not in names:
                    names[image.data] = f"{len(names)}-{image.name}"
                    images[names[image.data]] = base64.b64encode(image.data).decode()
            kept = {name: getattr(turn, name) for name in ("question", "answer", "state", "model", "rating", "given")}
            turns.append({**kept, "images": [names[image.data] for image in turn.images]})
        saved.append({"model": model, "system": conversation.system, "turns": turns})
    return json.dumps({"format": FORMAT, "sides": saved, "images": images}, ensure_ascii=False)


def from_json(text: str, limits: Limits) -> Sides:
    """Inverse of `to_json`, for untrusted text.

    Raises:
        UserError: It is no saved conversation, or exceeds a limit.
    """
    try:
        value = json.loads(text)
        if value.get("format") != FORMAT:
            raise UserError(f"this file is no saved conversation: expected format {FORMAT!r}")
        files = {name: base64.b64decode(data, validate=True) for name, data in value["images"].items()}
        return [(str(side["model"]), _read_side(side, files, limits)) for side in value["sides"][:2]]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise UserError(f"this file is no saved conversation ({type(error).__name__}: {error})") from None


def _read_side(side: dict[str, Any], files: dict[str, bytes], limits: Limits) -> Conversation:
    conversation = Conversation(system=check_text(str(side["system"]), limits, "system prompt"))
    for saved in side["turns"]:
        images: list[UploadedImage] = []
        for name in saved["images"]:
            shown_name = str(name).partition("-")[2]
            images.append(admit(shown_name, files[name], [*conversation.images, *images], limits))
        turn = Turn(check_text(str(saved["question"]), limits), tuple(images), str(saved["answer"]))
        turn.state = "failed" if saved["state"] == "failed" else "done"
        turn.model, turn.given = str(saved["model"]), str(saved["given"])
        turn.rating = saved["rating"] if saved["rating"] in ("up", "down", "corrected") else ""
        conversation.turns.append(turn)
    return conversation


def llava_record(conversation: Conversation, identity: str = "conversation") -> tuple[dict[str, Any], dict[str, bytes]]:
    """A record in LLaVA's layout, and its image files by path.

    Raises:
        UserError: There is no answer, or a question holds the text `<image>`, which LLaVA's JSON cannot hold as text.
    """
    turns = [turn for turn in conversation.turns if turn.state == "done"]
    if not turns:
        raise UserError("there is no answer to export")
    files: dict[str, bytes] = {}
    speech = [{"from": "system", "value": conversation.system}] if conversation.system else []
    for number, turn in enumerate(turns, start=1):
        if IMAGE_PLACEHOLDER in turn.question:
            raise UserError(
                f"question {number} holds the text {IMAGE_PLACEHOLDER}, which LLaVA's JSON would read as an image; "
                "change the question, or save the conversation instead"
            )
        for image in turn.images:
            files[f"images/{len(files):03}.{extension_of(image.data, image.name)}"] = image.data
        speech.append({"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n" * len(turn.images) + turn.question})
        speech.append({"from": "gpt", "value": turn.answer.strip()})
    return {"id": identity, "image": list(files), "conversations": speech, "model": turns[-1].model}, files


def to_llava(conversation: Conversation) -> bytes:
    """A ZIP file with `conversation.json` and `images/`. Errors as in `llava_record`."""
    record, files = llava_record(conversation)
    if not files:
        del record["image"]
    with io.BytesIO() as packed:
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("conversation.json", json.dumps([record], ensure_ascii=False, indent=1) + "\n")
            for name, data in files.items():
                archive.writestr(name, data)
        return packed.getvalue()


def to_html(sides: Sides) -> str:
    """A page without scripts and without requests to other servers."""
    return render("conversation.html", sides=sides)
