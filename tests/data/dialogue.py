"""What a record says, in a form that tests compare."""

from mmchat.data.records import Record


def dialogue(record: Record) -> list[tuple[str, str]]:
    """Role and text of every turn, with <> for an image."""
    return [(turn.role, "".join("<>" if part is None else part for part in turn.parts)) for turn in record.turns]
