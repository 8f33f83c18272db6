"""Contrastive losses on unit vectors, per pair of this rank, with the negatives of all ranks.

The mean over the pairs of all ranks is the loss of the papers.
"""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmchat.contrastive.all_gather import all_gather

CHUNK = 256
"""Number of images that `pairwise_sigmoid` compares with all texts at a time."""


def info_nce(images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, arXiv:2103.00020, figure 3).

    Args:
        images: Unit vectors float[n, P].
        texts: Unit vectors float[n, P]; row i belongs to image i.
        logit_scale: The inverse temperature, a scalar (not its logarithm).

    Returns:
        Loss of each pair: float[n].
    """
    gathered, first = all_gather(torch.stack([images, texts], dim=1))
    all_images, all_texts = gathered.unbind(dim=1)
    target = _global_rows(images, first)
    to_text = F.cross_entropy(logit_scale * images @ all_texts.T, target, reduction="none")
    to_image = F.cross_entropy(logit_scale * texts @ all_images.T, target, reduction="none")
    return (to_text + to_image) / 2


def pairwise_sigmoid(
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """SigLIP's pairwise sigmoid loss (Zhai et al. 2023, arXiv:2303.15343, equation 1).

    `chunk` rows of the logits are computed at a time, and recomputed in the backward. Memory grows linearly with the
    batch.

    Args:
        images: Unit vectors float[n, P].
        texts: Unit vectors float[n, P]; row i belongs to image i.
        logit_scale: The inverse temperature, a scalar.
        logit_bias: A scalar added to all logits.
        chunk: Number of images at a time.

    Returns:
        Loss of each image over all texts: float[n].
    """
    all_texts, first = all_gather(texts)
    targets = _global_rows(images, first)
    rows = [
        checkpoint(
            _sigmoid_rows, *part, all_texts, logit_scale, logit_bias, use_reentrant=False, preserve_rng_state=False
        )
        for part in zip(images.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(rows)


def _sigmoid_rows(
    images: torch.Tensor,
    targets: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
) -> torch.Tensor:
    """targets: index of each image's text, int[n]."""
    logits = logit_scale * images @ texts.T + logit_bias
    signs = torch.full_like(logits, -1).scatter(1, targets[:, None], 1)
    return -F.logsigmoid(signs * logits).sum(dim=1)


def nt_xent(first_views: torch.Tensor, second_views: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR's NT-Xent loss (Chen et al. 2020, arXiv:2002.05709, equation 1).

    The positive of a view is the other view of its image; all views of other images are negatives.

    Args:
        first_views: Unit vectors float[n, P].
        second_views: Unit vectors float[n, P]; row i comes from the same image as in `first_views`.
        temperature: Of the softmax.

    Returns:
        Loss of each image, the mean over its two views: float[n].
    """
    gathered, first = all_gather(torch.stack([first_views, second_views], dim=1))
    candidates = gathered.flatten(0, 1)  # the two views of an image are adjacent
    index = 2 * _global_rows(first_views, first)
    losses = []
    for views, itself, positive in ((first_views, index, index + 1), (second_views, index + 1, index)):
        logits = (views @ candidates.T / temperature).scatter(1, itself[:, None], -torch.inf)
        losses.append(F.cross_entropy(logits, positive, reduction="none"))
    return (losses[0] + losses[1]) / 2


def _global_rows(local: torch.Tensor, first: int) -> torch.Tensor:
    """Indices of this rank's rows among the rows of all ranks: int[n]."""
    return torch.arange(first, first + len(local), device=local.device)
