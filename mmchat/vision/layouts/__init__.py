"""The layouts in which towers are published, told apart by content. A new one is a file here and a line below."""

from mmchat.vision.layouts.hugging_face import HuggingFace
from mmchat.vision.layouts.internvit import OpenGVLab
from mmchat.vision.layouts.internvl import InternVL
from mmchat.vision.layouts.layout import Layout
from mmchat.vision.layouts.megatron import Megatron
from mmchat.vision.layouts.open_clip import OpenCLIP
from mmchat.vision.layouts.openai import OpenAI
from mmchat.vision.layouts.own import Own
from mmchat.vision.layouts.sam import Sam
from mmchat.vision.layouts.vary import Vary

LAYOUTS: tuple[Layout, ...] = (
    Own(),
    OpenGVLab(),
    InternVL(),
    HuggingFace(),
    OpenCLIP(),
    OpenAI(),
    Sam(),
    Vary(),
    Megatron(),
)
