"""Foreign assistant formats, one file each. A new format is a file here and an entry in `FORMATS`."""

from mmchat.conversion.formats.base import Format
from mmchat.conversion.formats.vary_opt import VaryOPT
from mmchat.conversion.formats.vary_qwen import VaryQwen

FORMATS: tuple[Format, ...] = (VaryOPT(), VaryQwen())
"""Tried in order. A format is recognised by the tensors in the files, never by a name."""

__all__ = ["FORMATS", "Format"]
