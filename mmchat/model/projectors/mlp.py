"""Projectors that map each patch separately: one linear layer, or several with GELU between them."""

from dataclasses import dataclass

from torch import nn

from mmchat.vision import TowerSpec


@dataclass(frozen=True)
class Linear:
    """One linear layer (LLaVA-1.0, arXiv:2304.08485; Vary)."""

    def slots(self, spec: TowerSpec) -> int:
        return spec.tokens

    def build(self, spec: TowerSpec, out_dim: int) -> nn.Module:
        return nn.Linear(spec.dim, out_dim)


@dataclass(frozen=True)
class MLP:
    """`depth` linear layers (LLaVA-1.5, arXiv:2310.03744: two). Submodules are numbered as in LLaVA."""

    depth: int

    def slots(self, spec: TowerSpec) -> int:
        return spec.tokens

    def build(self, spec: TowerSpec, out_dim: int) -> nn.Module:
        return nn.Sequential(*mlp_layers(spec.dim, out_dim, self.depth))


def mlp_layers(in_dim: int, out_dim: int, depth: int = 2) -> list[nn.Module]:
    """Layers of an MLP float[..., in_dim] -> float[..., out_dim] with `depth` linear layers."""
    layers: list[nn.Module] = [nn.Linear(in_dim, out_dim)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(out_dim, out_dim)]
    return layers
