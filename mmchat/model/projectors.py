"""From a tower's feature width to the language model's embedding width. Torch modules, chosen by exact name."""

from collections.abc import Callable

from torch import nn

from mmchat.errors import UserError


def linear(in_dim: int, out_dim: int) -> nn.Module:
    """One matrix (LLaVA's first version; Vary). float[..., in_dim] -> float[..., out_dim]"""
    return nn.Linear(in_dim, out_dim)


def mlp2x_gelu(in_dim: int, out_dim: int) -> nn.Module:
    """Linear, GELU, Linear (LLaVA-1.5, arXiv:2310.03744). float[..., in_dim] -> float[..., out_dim]"""
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))


PROJECTORS: dict[str, Callable[[int, int], nn.Module]] = {"linear": linear, "mlp2x_gelu": mlp2x_gelu}


def build_projector(name: str, in_dim: int, out_dim: int) -> nn.Module:
    """Raises UserError for an unknown name."""
    if name not in PROJECTORS:
        raise UserError(f"projector {name!r} is unknown; known: {', '.join(PROJECTORS)}")
    return PROJECTORS[name](in_dim, out_dim)
