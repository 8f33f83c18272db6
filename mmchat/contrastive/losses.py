"""Contrastive objectives on unit vectors. Each gives the losses of this rank's pairs, whose rivals are those of all
ranks; the mean over the pairs of all ranks is the loss of the papers."""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmchat.contrastive.all_gather import all_gather

CHUNK = 256
"""Images that `pairwise_sigmoid` compares at a time with all texts."""


def info_nce(images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy, per pair: float[n] (Radford et al. 2021, arXiv:2103.00020, figure 3).

    Args:
        images, texts: float[n, P], unit length; row i of one belongs to row i of the other.
        logit_scale: scalar, the inverse temperature itself (not its logarithm).
    """
    everyone, first = all_gather(torch.stack([images, texts], dim=1))
    all_images, all_texts = everyone.unbind(dim=1)
    target = _places(images, first)
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
    """SigLIP's loss, per image over all texts: float[n] (Zhai et al. 2023, arXiv:2303.15343, equation 1).

    Every pair of an image and a text is a question of its own, so the matrix is never there as a whole: `chunk` rows
    are computed at a time, and once more in the backward. Memory grows with the batch, not with its square.

    Args:
        images, texts, logit_scale: as of `info_nce`.
        logit_bias: scalar, added to every logit.
    """
    all_texts, first = all_gather(texts)
    own = _places(images, first)
    rows = [
        checkpoint(
            _sigmoid_rows, *part, all_texts, logit_scale, logit_bias, use_reentrant=False, preserve_rng_state=False
        )
        for part in zip(images.split(chunk), own.split(chunk), strict=True)
    ]
    return torch.cat(rows)


def _sigmoid_rows(
    images: torch.Tensor, own: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, logit_bias: torch.Tensor
) -> torch.Tensor:
    """own: int[n], which text belongs to each image."""
    logits = logit_scale * images @ texts.T + logit_bias
    signs = torch.full_like(logits, -1).scatter(1, own[:, None], 1)
    return -F.logsigmoid(signs * logits).sum(dim=1)


def nt_xent(first_views: torch.Tensor, second_views: torch.Tensor, temperature: float) -> torch.Tensor:
    """SimCLR's cross-entropy, per image: float[n], the mean over its two views (Chen et al. 2020, arXiv:2002.05709,
    equation 1).

    Every view looks for its other one among all views of all images but itself.

    Args:
        first_views, second_views: float[n, P], unit length; row i of both comes from image i.
    """
    everyone, first = all_gather(torch.stack([first_views, second_views], dim=1))
    candidates = everyone.flatten(0, 1)  # both views of an image stand one behind the other
    at = 2 * _places(first_views, first)
    losses = []
    for views, itself, other in ((first_views, at, at + 1), (second_views, at + 1, at)):
        logits = (views @ candidates.T / temperature).scatter(1, itself[:, None], -torch.inf)
        losses.append(F.cross_entropy(logits, other, reduction="none"))
    return (losses[0] + losses[1]) / 2


def _places(own: torch.Tensor, first: int) -> torch.Tensor:
    """Where this rank's rows stand among those of all: int[n]."""
    return torch.arange(first, first + len(own), device=own.device)
