"""What a tower sees of images: its views, as images that people can look at."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmchat.model.processor import MMChatProcessor
from mmchat.vision.transforms.preprocess import image_from_patches


def seen_views(processor: MMChatProcessor, images: Sequence[Image.Image]) -> list[list[Image.Image]]:
    """The views of each image of a conversation: resized, padded, cropped or cut as the first tower gets them.

    Args:
        processor: A model's processor.
        images: RGB images of one conversation. Views may depend on how many there are.

    Returns:
        The views of each image, in the order of their slots. With native aspect the patches are put together again, so
        that each image has one view.
    """
    spec = processor.image_processor.specs[0]
    seen = []
    for image in images:
        views = processor.image_processor.pixels(image, len(images) > 1)[0]
        if grid := spec.grid(image.size):
            views = image_from_patches(views, grid)[None]
        seen.append([Image.fromarray(np.ascontiguousarray(view.transpose(1, 2, 0))) for view in views])
    return seen
