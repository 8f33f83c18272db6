"""Records: one sample of images and conversation, in any stored layout. Imports no torch.

Layouts (record_layouts.py reads them):

    conversations   LLaVA's JSON and ShareGPT variants: turns {"from", "value"}, `<image>` marks an image
    messages        OpenAI and Hugging Face: {"role", "content"}, content is text or parts of text and images
    texts           the_cauldron and nanoVLM: exchanges {"user", "assistant"} after the images
    caption         one image and its caption, as in CSV, TSV and WebDataset; a class label counts as a caption
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mmchat.constants import IMAGE_PLACEHOLDER
from mmchat.conversation.messages import Dialect, Turn, parse_messages, to_messages
from mmchat.data.image_refs import ImageRef, make_image_ref
from mmchat.data.record_layouts import read_layout
from mmchat.data.row_layouts.downloads import NOT_DOWNLOADED
from mmchat.data.row_layouts.shard_members import KEY
from mmchat.errors import UserError
from mmchat.files import write_text

ImagePlace = Literal["as_written", "front"]
"""Where the image of a turn goes: where the record has it, or before the text."""


@dataclass(frozen=True)
class Record:
    """One sample.

    Attributes:
        id: The stored id, else `where`.
        images: References in the order of their placeholders. They read nothing until opened.
        turns: The conversation, which `conversation.render` takes as it is.
        where: `file:record`, for error messages.
        extra: Stored keys that have no meaning here.
        dialect: Dialect of the stored messages, in which `stored_form` writes them.
        turn_keys: Keys of its turns that have no meaning here.
    """

    id: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    where: str
    extra: dict[str, Any] = field(default_factory=dict)
    dialect: Dialect = "chat"
    turn_keys: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def unread_keys(self) -> list[str]:
        """The keys without meaning here that hold something; "turn.KEY" is one of a turn."""
        own = [str(key) for key, value in self.extra.items() if value is not None]
        return [*own, *sorted(f"turn.{key}" for key in self.turn_keys)]

    captions: tuple[str, ...] = ()
    """All captions, if there are several; the turns hold one of them."""

    def with_caption(self, number: int) -> "Record":
        """The record with another of its captions."""
        answer = self.turns[-1]._replace(parts=(self.captions[number],))
        return replace(self, turns=(*self.turns[:-1], answer))

    @property
    def variants(self) -> list["Record"]:
        """The record with each of its captions; itself if it has one."""
        return [self.with_caption(number) for number in range(len(self.captions))] or [self]

    @property
    def answers(self) -> list[str]:
        """The text of every assistant turn; of a caption record, the caption."""
        return [turn.text for turn in self.turns if turn.role == "assistant"]


@dataclass(frozen=True)
class Rejected:
    """A record that cannot be used. `kind` as in `UserError`; `raw` is the text of a record that cannot be decoded."""

    where: str
    id: str
    reason: str
    kind: str = field(default="", compare=False)
    raw: str = field(default="", compare=False, repr=False)

    @property
    def left_out(self) -> bool:
        """Whether the data itself says that there is nothing: it is counted, and nobody has to fix it."""
        return self.kind == NOT_DOWNLOADED


def read_record(item: Any, where: str, image_root: str | Path, allow_http: bool = False) -> Record | Rejected:
    """Validate one decoded object of any layout, without decoding an image.

    Checks keys and types, speakers, that there is an answer, one placeholder per image, and that image files exist
    below `image_root`.

    Args:
        item: The decoded object.
        where: `file:record`, for error messages.
        image_root: Folder that image paths are relative to.
        allow_http: Accept images at http(s) addresses.

    Returns:
        The record, or a `Rejected` with what was expected and what was found.
    """
    try:
        if not isinstance(item, Mapping):
            raise UserError(f"expected an object with an image and a conversation, found {type(item).__name__}")
        layout = read_layout(item)
        turns = tuple(parse_messages(layout.messages))
        _check_turns(turns, len(layout.images))
        images = tuple(make_image_ref(entry, str(image_root), allow_http) for entry in layout.images)
    except UserError as error:
        stored_id = next((item[key] for key in ("id", KEY) if key in item), "") if isinstance(item, Mapping) else ""
        return Rejected(where, str(stored_id), str(error), error.kind)
    identity = layout.extra.pop("id", None)
    identity = where if identity is None else str(identity)
    return Record(identity, images, turns, where, layout.extra, layout.dialect, layout.turn_keys, layout.captions)


def parse_record(item: Any, where: str, image_root: str | Path, allow_http: bool = False) -> Record:
    """`read_record` that raises.

    Raises:
        UserError: The record cannot be used. The message begins with `where`.
    """
    record = read_record(item, where, image_root, allow_http)
    if isinstance(record, Rejected):
        raise UserError(f"{where}: {record.reason}", record.kind)
    return record


def check_encodable(text: str) -> None:
    """Refuse a lone surrogate: JSON can spell it, but no tokenizer can encode it.

    Raises:
        UserError: Names the code point and its position.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"the text holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start + 1}"
        raise UserError(problem, kind="lone_surrogate") from None


def limit_turns(record: Record, exchanges: int) -> Record:
    """The record up to its `exchanges`-th answer, with the images of that part."""
    answers, images = 0, 0
    for number, turn in enumerate(record.turns):
        images += turn.parts.count(None)
        answers += turn.role == "assistant"
        if answers == exchanges:
            return replace(record, turns=record.turns[: number + 1], images=record.images[:images])
    return record


def images_to_front(record: Record) -> Record:
    """The record with the image of a turn before its text, and a line break between them.

    So does LLaVA's llava/train/train.py (preprocess_multimodal), which also strips the text. A turn with several images
    is left as it is written, as in LLaVA-NeXT's.
    """
    turns = tuple(_with_image_in_front(turn) if turn.parts.count(None) == 1 else turn for turn in record.turns)
    return replace(record, turns=turns)


def _with_image_in_front(turn: Turn) -> Turn:
    text = turn.text.strip()
    return turn._replace(parts=(None, f"\n{text}") if text else (None,))


def prepared(record: Record, max_turns: int | None = None, image_place: ImagePlace = "as_written") -> Record:
    """The record as its source's keys want it (`SourceConfig`)."""
    if max_turns is not None:
        record = limit_turns(record, max_turns)
    return images_to_front(record) if image_place == "front" else record


def image_and_answer(record: Record, answer_name: str) -> tuple[ImageRef, str]:
    """The image and the answer of a record that holds one of each.

    Args:
        record: The record.
        answer_name: What error messages call the answer, as "caption" or "label".

    Raises:
        UserError: Other than one image and one answer.
    """
    images, answers = record.images, record.answers
    if len(images) != 1 or len(answers) != 1:
        raise UserError(f"expected one image and one {answer_name}, found {len(images)} and {len(answers)}")
    return images[0], answers[0]


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write LLaVA records, one per line: as JSONL (`.jsonl`), else as a JSON array."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "\n".join(lines) if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    write_text(path, text + "\n")


def stored_form(record: Record) -> dict[str, Any]:
    """The record as an object that `parse_record` reads back, without its images."""
    if record.captions:
        return {"id": record.id, "caption": list(record.captions), **record.extra}
    key = "conversations" if record.dialect == "data" else "messages"
    return {"id": record.id, key: to_messages(record.turns, record.dialect), **record.extra}


def _check_turns(turns: tuple[Turn, ...], images: int) -> None:
    placeholders = sum(turn.parts.count(None) for turn in turns)
    if placeholders != images:
        problem = f"{placeholders} {IMAGE_PLACEHOLDER} in the human turns but {images} images"
        raise UserError(problem, "slot_mismatch")
    for text in (part for turn in turns for part in turn.parts if part and not part.isascii()):
        check_encodable(text)
    if not any(turn.role == "assistant" for turn in turns):
        raise UserError("has no gpt turn, so there is nothing to learn", "nothing_to_learn")
