"""Embed images and texts with a dual encoder, its tokenizer and its preprocessing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from mmchat.contrastive.captions import encode_caption
from mmchat.contrastive.directory import load_clip, load_tokenizer
from mmchat.contrastive.dual_encoder import MAX_LOGIT_SCALE, DualEncoder
from mmchat.vision import normalise, preprocess

TEXTS_AT_A_TIME = 256


class Embedder:
    """Images and texts -> unit vectors.

    Args:
        model: The dual encoder.
        tokenizer: Its tokenizer.
        truncate: Whether to truncate texts that are too long, instead of raising.
    """

    def __init__(self, model: DualEncoder, tokenizer: Any, truncate: bool = False) -> None:
        self.model, self.tokenizer, self.truncate = model, tokenizer, truncate
        self.spec, self.device = model.towers[0].spec, model.device

    @classmethod
    def open(cls, source: str | Path, truncate: bool = False) -> "Embedder":
        """Open a dual encoder and its tokenizer in fp32, on the GPU if there is one.

        Raises:
            UserError: See `load_clip` and `load_tokenizer`.
        """
        model = load_clip(source, dtype="float32").eval()
        tokenizer = load_tokenizer(source, model)
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, truncate)

    @property
    def scale(self) -> float:
        """The inverse temperature, the factor of similarities."""
        scale = self.model.logit_scale.exp().item()
        return scale if self.model.config.sigmoid else min(scale, MAX_LOGIT_SCALE)

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embed RGB images in one forward: unit vectors float32[B, P]."""
        pixels = normalise([preprocess(image, self.spec)[0] for image in images], self.spec)
        return self._encode_image(torch.from_numpy(pixels).to(self.device)).float().cpu().numpy()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: unit vectors float32[B, P].

        Raises:
            UserError: A text is too long and `truncate` is False.
        """
        rows = [torch.tensor(self.ids(text)) for text in texts]
        parts = [self._padded(rows[i : i + TEXTS_AT_A_TIME]) for i in range(0, len(rows), TEXTS_AT_A_TIME)]
        return np.concatenate([self._encode_text(*part).float().cpu().numpy() for part in parts])

    def ids(self, text: str) -> list[int]:
        """Token ids of a text with special tokens. Raises like `texts`."""
        return encode_caption(self.tokenizer, text, self.model.config.context_length, self.truncate)

    def _padded(self, rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask, int[B, L] each. Padding is masked, so any id will do."""
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.eos_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return ids.to(self.device), mask.to(self.device)

    def _encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(pixels)

    def _encode_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(ids, mask)
