"""Image-text retrieval: recall@k from captions to images and from images to captions."""

from mmchat.contrastive.embedding import Embedder
from mmchat.data.image_refs import ImageRef
from mmchat.data.records import Rejected
from mmchat.data.sources import Source
from mmchat.errors import UserError
from mmchat.evaluation.metrics import Interval, retrieval_ranks, share_with_interval
from mmchat.evaluation.zero_shot import embed_images

RECALLS = (1, 5, 10)


def retrieve(embedder: Embedder, source: Source, batch_size: int = 64) -> dict[str, tuple[float, Interval]]:
    """Recall@k of images by their captions, and of captions by their images, with 95 % intervals.

    Equal captions are one, and so are equal image files: whatever some record pairs is right. Where all captions
    differ this is the usual recall of COCO and Flickr30k.

    Raises:
        UserError: a record is unusable, or has other than one image and one caption or more.
    """
    texts: dict[str, int] = {}
    refs: dict[ImageRef, int] = {}
    pairs: set[tuple[int, int]] = set()
    for record in source:
        if isinstance(record, Rejected):
            raise UserError(f"{record.where}: {record.reason}")
        captions = ["".join(turn.parts).strip() for turn in record.turns if turn.role == "assistant"]
        if len(record.images) != 1:
            raise UserError(f"{record.where}: {len(record.images)} images; retrieval needs exactly one")
        image = refs.setdefault(record.images[0], len(refs))
        pairs |= {(texts.setdefault(caption, len(texts)), image) for caption in captions}
    if not pairs:
        raise UserError(f"{source.name} holds no record to retrieve")
    of_text, of_image = [[] for _ in texts], [[] for _ in refs]
    for text, image in sorted(pairs):
        of_text[text].append(image)
        of_image[image].append(text)
    words = embedder.texts(list(texts))
    images = embed_images(embedder, list(refs), batch_size)
    both = {
        "text_to_image": retrieval_ranks(words, images, of_text),
        "image_to_text": retrieval_ranks(images, words, of_image),
    }
    return {f"{way}/recall@{k}": share_with_interval(ranks < k) for way, ranks in both.items() for k in RECALLS}
