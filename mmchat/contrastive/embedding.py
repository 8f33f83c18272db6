"""Images and texts to unit vectors: a dual encoder with its tokenizer and its preprocessing."""

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
    """truncate: cut texts that are too long for the model, which otherwise raise."""

    def __init__(self, model: DualEncoder, tokenizer: Any, truncate: bool = False) -> None:
        self.model, self.tokenizer, self.truncate = model, tokenizer, truncate
        self.spec, self.device = model.towers[0].spec, model.device

    @classmethod
    def open(cls, source: str | Path, truncate: bool = False) -> "Embedder":
        """A dual encoder with its tokenizer, on the accelerator if there is one; UserError as `load_clip` and
        `load_tokenizer`."""
        model = load_clip(source, dtype="float32").eval()
        tokenizer = load_tokenizer(source, model)
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, truncate)

    @property
    def scale(self) -> float:
        """The inverse temperature that similarities are multiplied by."""
        scale = self.model.logit_scale.exp().item()
        return scale if self.model.config.sigmoid else min(scale, MAX_LOGIT_SCALE)

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """RGB images, in one forward -> float32[B, P], unit length."""
        pixels = normalise([preprocess(image, self.spec)[0] for image in images], self.spec)
        return self._encode_image(torch.from_numpy(pixels).to(self.device)).float().cpu().numpy()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32[B, P], unit length. Raises UserError for a text that is too long, unless they are to be cut."""
        rows = [torch.tensor(self.ids(text)) for text in texts]
        parts = [self._padded(rows[i : i + TEXTS_AT_A_TIME]) for i in range(0, len(rows), TEXTS_AT_A_TIME)]
        return np.concatenate([self._encode_text(*part).float().cpu().numpy() for part in parts])

    def ids(self, text: str) -> list[int]:
        """A text's tokens with those that begin and end it. Raises UserError where it is too long and not to be cut."""
        return encode_caption(self.tokenizer, text, self.model.config.context_length, self.truncate)

    def _padded(self, rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask: int[B, L] each. The mask hides what pads, so that any id does."""
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.eos_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return ids.to(self.device), mask.to(self.device)

    def _encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode_image(pixels)

    def _encode_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(ids, mask)
