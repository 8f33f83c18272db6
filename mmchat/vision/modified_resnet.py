"""CLIP's ResNet (Radford et al. 2021, arXiv:2103.00020, section 2.4; openai/CLIP, clip/model.py `ModifiedResNet`).

It differs from a standard ResNet: the stem is three convolutions and an average pool, strides are average pools, and
the head is an attention pool whose query is the mean of the last grid.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

STRIDES = (4, 4, 8, 16, 32)
"""Pixels per feature after the stem and after each stage."""
CHANNELS = (1, 4, 8, 16, 32)
"""Channels after the stem and after each stage, in multiples of the width."""
STAGES = 4
EXPANSION = 4
HEAD_WIDTH = 64


class ResNetConfig(PreTrainedConfig):
    """Config of `ModifiedResNet`.

    Args:
        layers: Number of blocks of each stage.
        width: Channels after the stem.
        image_size: Side of the images in pixels.
        output_dim: Output width of the attention pool.
    """

    model_type = "clip_resnet"

    def __init__(
        self,
        layers: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
        image_size: int = 224,
        output_dim: int = 1024,
        **kwargs,
    ) -> None:
        self.layers, self.width, self.image_size, self.output_dim = layers, width, image_size, output_dim
        super().__init__(**kwargs)


class ModifiedResNet(PreTrainedModel):
    """The network, with OpenAI's module names, so that no key is renamed.

    A transformers model, which gives initialisation and gradient checkpointing per block.
    """

    config_class = ResNetConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = FixedBatchNorm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = FixedBatchNorm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = FixedBatchNorm(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(width * CHANNELS[n], width * CHANNELS[n + 1], STRIDES[n + 1] // STRIDES[n], config.layers[n])
            for n in range(STAGES)
        )
        self.attnpool = AttentionPool(config.image_size // STRIDES[-1], width * CHANNELS[-1], config.output_dim)
        self.post_init()

    @property
    def stages(self) -> list[nn.Sequential]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def stem(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float[B, 3, H, W] -> float[B, width, H / 4, W / 4]."""
        hidden = F.relu(self.bn1(self.conv1(pixel_values)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        hidden = F.relu(self.bn3(self.conv3(hidden)))
        return F.avg_pool2d(hidden, 2)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """OpenAI's initialisation except for convolutions, which preserve the scale of activations (He et al. 2015,
        arXiv:1502.01852) because batch statistics do not do so here."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
            init.zeros_(module.bias)
        elif isinstance(module, AttentionPool):
            init.normal_(module.positional_embedding, std=module.positional_embedding.shape[-1] ** -0.5)
        elif isinstance(module, FixedBatchNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
        elif isinstance(module, Bottleneck):
            init.zeros_(module.bn3.weight)  # the residual branch starts at 0


def _stage(channels: int, widened: int, stride: int, blocks: int) -> nn.Sequential:
    """float[B, channels, H, W] -> float[B, widened, H / stride, W / stride]; only the first block changes the shape."""
    rest = [Bottleneck(widened, widened, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(channels, widened, stride), *rest)


class Bottleneck(GradientCheckpointingLayer):
    """Bottleneck block: float[B, channels, H, W] -> float[B, widened, H / stride, W / stride]."""

    def __init__(self, channels: int, widened: int, stride: int) -> None:
        super().__init__()
        narrow = widened // EXPANSION
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, narrow, 1, bias=False)
        self.bn1 = FixedBatchNorm(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, padding=1, bias=False)
        self.bn2 = FixedBatchNorm(narrow)
        self.conv3 = nn.Conv2d(narrow, widened, 1, bias=False)
        self.bn3 = FixedBatchNorm(widened)
        self.downsample = nn.Identity()
        if channels != widened:
            self.downsample = nn.Sequential(nn.Conv2d(channels, widened, 1, bias=False), FixedBatchNorm(widened))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.bn1(self.conv1(hidden)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(self._strided(inner)))
        return F.relu(inner + self.downsample(self._strided(hidden)))

    def _strided(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(hidden, self.stride) if self.stride > 1 else hidden


class FixedBatchNorm(nn.Module):
    """Batch norm with fixed statistics, in training too. Scale and shift are trainable.

    Frozen weights stay bit-identical, features do not depend on the batch, and a step can be split into any
    micro-batches.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(hidden, self.running_mean, self.running_var, self.weight, self.bias)


class AttentionPool(nn.Module):
    """Attention pool: float[B, width, side, side] -> float[B, output_dim].

    The mean of the grid is the query; keys and values are the mean and the grid.
    """

    def __init__(self, side: int, width: int, output_dim: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output_dim)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        tokens = grid.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positional_embedding
        query, key, value = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        return self.c_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(1))
