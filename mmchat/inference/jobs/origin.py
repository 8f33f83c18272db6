"""What made the lines of a journal: the model, its weights, the prompt and the limits, in a file beside it.

A run that would answer otherwise is refused, so one file never holds the answers of two models or prompts.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmchat.data.storage import content_digest
from mmchat.errors import UserError
from mmchat.files import read_json_object, write_json
from mmchat.hub import WEIGHTS, resolve


@dataclass(frozen=True)
class Origin:
    """What an answer depends on besides the image.

    Attributes:
        model: The model's directory or name, for messages.
        weights: Digest of its weight files. The same weights in another place are the same model.
        settings: Prompt and limits.
    """

    model: str
    weights: str
    settings: Mapping[str, Any]


def origin_of(model: Path, settings: Mapping[str, Any]) -> Origin:
    """The origin of the answers of a model directory. Weight files that have not changed are read once (cached)."""
    files = sorted(map(str, resolve(model).glob(WEIGHTS)))
    return Origin(str(model), content_digest(files), dict(settings))


def origin_file(journal: Path) -> Path:
    """`captions.jsonl` -> `captions.jsonl.made_by.json`."""
    return journal.with_name(f"{journal.name}.made_by.json")


def refuse_other_origin(journal: Path, origin: Origin) -> None:
    """Check that a journal, if there is one, was made as the next lines would be.

    A journal without a file beside it is accepted: an earlier version or a program in Python wrote it.

    Raises:
        UserError: It was made by other weights or with other settings; lists what differs.
    """
    file = origin_file(journal)
    if not journal.exists() or not file.exists():
        return
    before = read_json_object(file)
    differs = []
    if before.get("weights") != origin.weights:
        named = before.get("model")
        changed = f"model {named}" if named != origin.model else f"earlier weights of {named}"
        differs.append(f"{changed} (now {origin.model})")
    settings = before.get("settings", {})
    for name in dict.fromkeys([*settings, *origin.settings]):
        if settings.get(name) != origin.settings.get(name):
            differs.append(f"{name} {settings.get(name)!r} (now {origin.settings.get(name)!r})")
    if differs:
        raise UserError(
            f"{journal} was made with {', '.join(differs)}; name another --out, or start it again with --overwrite"
        )


@contextmanager
def noted_origin(journal: Path, origin: Origin) -> Iterator[None]:
    """Keep the origin beside a journal that is written meanwhile; a job without a line leaves no file."""
    file = origin_file(journal)
    write_json(file, asdict(origin))
    try:
        yield
    finally:
        if not journal.exists():
            file.unlink(missing_ok=True)
