"""Published formats of vision towers, recognised by content. A new one is a file here and a line below.

The first format that recognises the files opens them.
"""

from mmchat.vision.checkpoint_formats.base import CheckpointFormat
from mmchat.vision.checkpoint_formats.hugging_face import HuggingFace
from mmchat.vision.checkpoint_formats.internvit import OpenGVLab
from mmchat.vision.checkpoint_formats.internvl import InternVL
from mmchat.vision.checkpoint_formats.megatron import Megatron
from mmchat.vision.checkpoint_formats.mmchat_directory import MMChatDirectory
from mmchat.vision.checkpoint_formats.open_clip import OpenCLIP
from mmchat.vision.checkpoint_formats.openai import OpenAI
from mmchat.vision.checkpoint_formats.sam import Sam
from mmchat.vision.checkpoint_formats.vary import Vary

CHECKPOINT_FORMATS: tuple[CheckpointFormat, ...] = (
    MMChatDirectory(),
    OpenGVLab(),
    InternVL(),
    HuggingFace(),
    OpenCLIP(),
    OpenAI(),
    Sam(),
    Vary(),
    Megatron(),
)
