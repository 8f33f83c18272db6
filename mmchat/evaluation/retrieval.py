"""Image-text retrieval: recall@k from captions to images and from images to captions."""

from mmchat.contrastive.embedding import Embedder
from mmchat.data.image_refs import ImageRef
from mmchat.data.sources import Source
from mmchat.errors import UserError
from mmchat.evaluation.metrics import Interval, retrieval_ranks, share_with_interval
from mmchat.evaluation.one_image_records import one_image_records
from mmchat.evaluation.zero_shot import embed_images

RECALLS = (1, 5, 10)


def retrieve(embedder: Embedder, source: Source, batch_size: int = 64) -> dict[str, tuple[float, Interval]]:
    """Recall@k from text to image and from image to text.

    Equal captions are merged, and so are equal image files. An item is right for a query if some record pairs the two.
    If all captions differ, this is the recall reported for COCO and Flickr30k.

    Returns:
        "text_to_image/recall@1" and so on -> (value, 95 % interval).

    Raises:
        UserError: a record is unusable or does not have exactly one image, or no record has a caption.
    """
    texts: dict[str, int] = {}
    refs: dict[ImageRef, int] = {}
    pairs: set[tuple[int, int]] = set()
    for record in one_image_records(source, "retrieval"):
        image = refs.setdefault(record.images[0], len(refs))
        pairs |= {
            (texts.setdefault(caption.strip(), len(texts)), image) for caption in record.captions or record.answers
        }
    if not pairs:
        raise UserError(f"{source.name} has no captions to retrieve")
    images_of_text, texts_of_image = [[] for _ in texts], [[] for _ in refs]
    for text, image in sorted(pairs):
        images_of_text[text].append(image)
        texts_of_image[image].append(text)
    captions = embedder.texts(list(texts))
    images = embed_images(embedder, list(refs), batch_size)
    ranks_by_direction = {
        "text_to_image": retrieval_ranks(captions, images, images_of_text),
        "image_to_text": retrieval_ranks(images, captions, texts_of_image),
    }
    return {
        f"{direction}/recall@{k}": share_with_interval(ranks < k)
        for direction, ranks in ranks_by_direction.items()
        for k in RECALLS
    }
