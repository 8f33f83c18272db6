"""Images: find them, open them safely, make them RGB. Imports no torch.

formats   the one list of formats
finding   image files in folders, paths below a root
reading   open a file or bytes, which are untrusted
rgb       an image becomes RGB, for every entrance
store     memory in which a large image is decoded and converted
webp      WebP by libwebp itself
cost      bytes per pixel that decoding takes, by format
"""

from mmchat.images.finding import FolderImages, find_images, is_junk, resolve_inside, walk_images
from mmchat.images.formats import FORMATS, IMAGE_SUFFIXES
from mmchat.images.reading import (
    MAX_PIXELS,
    SIDEWAYS,
    data_uri,
    extension_of,
    image_count,
    image_size,
    load_image,
    open_header,
)
from mmchat.images.rgb import as_rgb, orientation

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "SIDEWAYS",
    "FolderImages",
    "as_rgb",
    "data_uri",
    "extension_of",
    "find_images",
    "image_count",
    "image_size",
    "is_junk",
    "load_image",
    "open_header",
    "orientation",
    "resolve_inside",
    "walk_images",
]
