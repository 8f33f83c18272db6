"""Data sets in LLaVA's format: LLaVA-Pretrain, LLaVA-1.5's mix of 665K, ShareGPT4V.

One JSON array of `{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]}`. The 665K mix has duplicate
ids (one image in several sets), and text-only records without `image` and with a `model` key. Only the three keys above
are kept. Texts are not changed.
"""

from collections.abc import Iterator
from typing import Any

from convert_readers.interface import ConversionJob, Converted, Skipped, UnusableItem, convert_items, speaker_name
from convert_readers.json_streams import read_list


def with_images(job: ConversionJob) -> Iterator[Converted | Skipped]:
    """Data sets in which every record has an image (LLaVA-Pretrain, ShareGPT4V)."""
    for item in mixed(job):
        if isinstance(item, Converted) and "image" not in item.record:
            item = Skipped(item.where, item.record["id"], "no `image`", "every record of this kind should have one")
        yield item


def mixed(job: ConversionJob) -> Iterator[Converted | Skipped]:
    """Data sets with text-only records (LLaVA-1.5's instruction mix)."""
    for path in job.inputs:
        yield from convert_items(read_list(path, "", job.advance), _normalise)


def _normalise(where: str, item: Any) -> Converted:
    if not isinstance(item, dict) or not isinstance(item.get("conversations"), list):
        raise UnusableItem("no `conversations`", item)
    record: dict[str, Any] = {"id": str(item.get("id", where))}
    images = item.get("image") or []
    if not all(isinstance(image, str) for image in ([images] if isinstance(images, str) else images)):
        raise UnusableItem("`image` is not a path", images)
    if images:
        record["image"] = images
    return Converted(where, record | {"conversations": [_turn(turn) for turn in item["conversations"]]})


def _turn(turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise UnusableItem("a turn without `value`", turn)
    return {"from": speaker_name(turn.get("from"), turn), "value": turn["value"]}
