"""Each patch by itself: one matrix, or several with GELU between them."""

from dataclasses import dataclass

from torch import nn

from mmchat.vision import TowerSpec


@dataclass(frozen=True)
class Linear:
    """One matrix (LLaVA's first version, arXiv:2304.08485; Vary)."""

    def slots(self, spec: TowerSpec) -> int:
        return spec.tokens

    def build(self, spec: TowerSpec, out_dim: int) -> nn.Module:
        return nn.Linear(spec.dim, out_dim)


@dataclass(frozen=True)
class MLP:
    """`depth` matrices (LLaVA-1.5, arXiv:2310.03744: two), submodules numbered as LLaVA's are."""

    depth: int

    def slots(self, spec: TowerSpec) -> int:
        return spec.tokens

    def build(self, spec: TowerSpec, out_dim: int) -> nn.Module:
        return nn.Sequential(*mlp_layers(spec.dim, out_dim, self.depth))


def mlp_layers(in_dim: int, out_dim: int, depth: int = 2) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(in_dim, out_dim)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(out_dim, out_dim)]
    return layers
