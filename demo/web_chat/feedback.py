"""Ratings and corrections of visitors, as records that `mmchat data check` accepts and training can use."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from mmchat.files import write_bytes, write_text
from mmchat.images import extension_of
from web_chat.conversation import Conversation, Turn

GOOD, BAD = "feedback.jsonl", "rejected.jsonl"


class Feedback:
    """A folder with `feedback.jsonl` (answers that were liked or corrected), `rejected.jsonl` (disliked ones) and
    `images/`.

    A record holds the conversation up to the answer. Only that answer is supervised. A later rating of the same answer
    replaces the earlier one.

    Args:
        folder: Is made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        (folder / "images").mkdir(parents=True, exist_ok=True)

    def put(self, conversation: Conversation, number: int) -> None:
        """Keep the rating of a turn; one without a rating is removed."""
        turn = conversation.turns[number]
        record = self._record(conversation, number)
        with self._lock:
            for name in (GOOD, BAD):
                self._remove(self.folder / name, record["id"])
            if turn.rating:
                with (self.folder / (BAD if turn.rating == "down" else GOOD)).open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    def prefer(self, better: Conversation, other: Conversation) -> None:
        """Keep that visitors preferred the last answer of one model to that of another."""
        for conversation, rating in ((better, "up"), (other, "down")):
            conversation.turns[-1].rating = rating
            self.put(conversation, len(conversation.turns) - 1)

    def _record(self, conversation: Conversation, number: int) -> dict[str, Any]:
        turn = conversation.turns[number]
        before = Conversation([*conversation.turns[:number], Turn(turn.question, turn.images)], conversation.system)
        messages, images = before.messages()
        for message in messages:
            if message["role"] == "assistant":
                message["train"] = False
        given = turn.given or turn.answer
        asked = json.dumps([messages, [hashlib.sha256(image.data).hexdigest() for image in images], turn.model, given])
        record = {
            "id": f"feedback-{hashlib.sha256(asked.encode()).hexdigest()[:16]}",
            "images": [self._keep(image.data, image.name) for image in images],
            "messages": [*messages, {"role": "assistant", "content": turn.answer.strip()}],
            "rating": turn.rating,
            "model": turn.model,
        }
        return record | ({"corrected_from": turn.given} if turn.rating == "corrected" else {})

    def _keep(self, data: bytes, name: str) -> str:
        """Write an image once; returns its path in the folder."""
        relative = f"images/{hashlib.sha256(data).hexdigest()[:24]}.{extension_of(data, name)}"
        if not (self.folder / relative).exists():
            write_bytes(self.folder / relative, data)
        return relative

    def _remove(self, path: Path, identity: str) -> None:
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["id"] != identity]
        if len(kept) < len(lines):
            write_text(path, "".join(kept))
