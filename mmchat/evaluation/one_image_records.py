"""Records for an evaluation: all of a source, each with exactly one image."""

from collections.abc import Iterable, Iterator

from mmchat.data.records import Record, Rejected
from mmchat.errors import UserError


def one_image_records(source: Iterable[Record | Rejected], task: str) -> Iterator[Record]:
    """The records of a source in order. An evaluation leaves nothing out but images that were never downloaded.

    Args:
        task: names the task in messages.

    Raises:
        UserError: a record is unusable, or does not have exactly one image.
    """
    for record in source:
        if isinstance(record, Rejected) and record.left_out:
            continue
        if isinstance(record, Rejected):
            raise UserError(f"{record.where}: {record.reason}")
        if len(record.images) != 1:
            raise UserError(f"{record.where}: {len(record.images)} images; {task} needs exactly one")
        yield record
