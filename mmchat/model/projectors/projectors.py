"""The projectors of all towers as one module: they fuse the towers' features and fill the image slots."""

from collections.abc import Sequence

import torch
from torch import nn

_NEWLINE_SEED = 0


class Projectors(nn.ModuleList):
    """One projector per tower; their outputs are fused.

    `image_newline` is the learned vector that ends a row of features, for fits that have slots for it
    (`Preprocessing.has_newline`), else None. It is here because it is trained and saved with the projectors, and this
    module has a `forward`, where ZeRO 3 gathers its parameters.

    Args:
        projectors: One per tower.
        fusion: As in `MMChatConfig`.
        newline_width: Hidden size of the language model if there is an `image_newline`, else None.
    """

    def __init__(self, projectors: Sequence[nn.Module], fusion: str, newline_width: int | None = None) -> None:
        super().__init__(projectors)
        self.fusion = fusion
        self.image_newline: nn.Parameter | None
        self.register_parameter("image_newline", None)
        self.set_newline(newline_width)

    def set_newline(self, width: int | None) -> None:
        """Add `image_newline`, or remove it if `width` is None. One that exists is kept.

        It is drawn as in transformers' LlavaNextModel, with a variance of one over the width, and always the same, so
        that all ranks agree.
        """
        if width is None:
            self.image_newline = None
        elif self.image_newline is None:
            vector = nn.Parameter(torch.empty(width))
            drawn = torch.randn(width, generator=torch.Generator("cpu").manual_seed(_NEWLINE_SEED), device="cpu")
            with torch.no_grad():
                vector.copy_(drawn / width**0.5)
            self.image_newline = vector

    def forward(
        self,
        tower_features: Sequence[torch.Tensor],
        slot_indices: torch.Tensor | None = None,
        slot_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Project, fuse and arrange features.

        Args:
            tower_features: float[views, N, D of the tower] per tower.
            slot_indices: int64[slots] or int64[slots, taps]: the feature of each slot, counted over all views; -1 is
                `image_newline`. None: all features in order.
            slot_weights: float32[slots, taps]: slots show sums of features with these weights.

        Returns:
            float[views, image_tokens, D], where D is the language model's hidden size; with `slot_indices`
            float[slots, D].
        """
        projected = [projector(features) for projector, features in zip(self, tower_features, strict=True)]
        fused = torch.cat(projected, dim=-1 if self.fusion == "channels" else 1)
        if slot_indices is None:
            return fused
        sources = fused.flatten(0, 1)
        if self.image_newline is not None:  # the last row, which index -1 selects
            sources = torch.cat([sources, self.image_newline.to(sources.dtype)[None]])
        chosen = sources[slot_indices]
        return chosen if slot_weights is None else (chosen * slot_weights[..., None]).sum(1).to(sources.dtype)
