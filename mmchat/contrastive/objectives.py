"""Contrastive objectives on normalised embeddings."""

import torch
from torch.nn import functional as F


def info_nce(images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy, per pair: float[B] (Radford et al. 2021, arXiv:2103.00020, figure 3).

    Args:
        images, texts: float[B, P], unit length; row i of one belongs to row i of the other.
        logit_scale: scalar, the inverse temperature itself (not its logarithm).
    """
    logits = logit_scale * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    to_text = F.cross_entropy(logits, target, reduction="none")
    to_image = F.cross_entropy(logits.T, target, reduction="none")
    return (to_text + to_image) / 2
