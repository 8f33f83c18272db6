"""Foreign assistant formats, one file each. A new format is a file here and an entry in `FORMATS` or `TARGETS`."""

from mmchat.conversion.formats.base import ExportFormat, Format
from mmchat.conversion.formats.gguf import GGUF
from mmchat.conversion.formats.idefics3 import Idefics3
from mmchat.conversion.formats.idefics3_export import Idefics3Target
from mmchat.conversion.formats.internvl import InternVL
from mmchat.conversion.formats.internvl_opengvlab import InternVLOpenGVLab
from mmchat.conversion.formats.llava_hf import LlavaHF
from mmchat.conversion.formats.llava_next import LlavaNext
from mmchat.conversion.formats.llava_onevision import LlavaOnevision
from mmchat.conversion.formats.llava_original import LlavaOriginal
from mmchat.conversion.formats.llava_original_export import LlavaOriginalTarget
from mmchat.conversion.formats.nanovlm import NanoVLM
from mmchat.conversion.formats.vary_opt import VaryOPT
from mmchat.conversion.formats.vary_qwen import VaryQwen

FORMATS: tuple[Format, ...] = (
    Idefics3(),
    LlavaHF(),
    LlavaNext(),
    LlavaOnevision(),
    InternVL(),
    InternVLOpenGVLab(),
    LlavaOriginal(),
    NanoVLM(),
    VaryOPT(),
    VaryQwen(),
)
"""Formats that are read, tried in order. A format is recognised by the contents of the files, never by a name."""
TARGETS: tuple[ExportFormat, ...] = (
    LlavaHF(),
    LlavaNext(),
    LlavaOnevision(),
    InternVL(),
    Idefics3Target(),
    LlavaOriginalTarget(),
    GGUF(),
)
"""Formats that are written, the preferred ones first."""

__all__ = ["FORMATS", "TARGETS", "ExportFormat", "Format"]
