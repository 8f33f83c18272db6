"""Prompts become embeddings: towers run on the images of several requests in one batch."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from mmchat.errors import UserError
from mmchat.inference.engine.request import Prompt
from mmchat.model.attention import use_fast_attention
from mmchat.model.modeling import MMChatForConditionalGeneration
from mmchat.model.splice import splice


class PromptEmbedder:
    """Embeds prompts for a language model, with image features in place of slots.

    Args:
        model: An assistant, or a language model for prompts without images.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.assistant = model if isinstance(model, MMChatForConditionalGeneration) else None
        towers: Any = () if self.assistant is None else self.assistant.towers
        for tower in towers:
            if tower.takes_attention:
                use_fast_attention(tower.backbone)
        self.embedding: Any = model.get_input_embeddings()
        self.width = self.embedding(torch.zeros(1, dtype=torch.long, device=model.device)).shape[-1]

    def check(self, prompt: Prompt) -> None:
        """Refuse what would fail in the model.

        Raises:
            UserError: The prompt is empty, has ids outside the vocabulary, embeddings of another shape, or other
                numbers of slots and features.
        """
        ids = prompt.input_ids
        if len(ids) == 0:
            raise UserError("the prompt is empty; it needs at least one token")
        size = self.embedding.num_embeddings
        if min(ids) < 0 or max(ids) >= size:
            raise UserError(f"token ids must be from 0 to {size - 1}, found {min(ids)} to {max(ids)}")
        if prompt.embeddings is not None:
            if tuple(prompt.embeddings.shape) != (len(ids), self.width):
                raise UserError(
                    f"embeddings must be float[{len(ids)}, {self.width}], found {[*prompt.embeddings.shape]}"
                )
            return
        slots = sum(one == self.image_token_id for one in ids)
        features = _count_features(self.assistant, prompt.images)
        if slots != features:
            raise UserError(f"the prompt has {slots} image slots, but its images fill {features}")

    @property
    def image_token_id(self) -> int | None:
        """The id of image slots; None for a language model alone."""
        return None if self.assistant is None else self.assistant.config.image_token_id

    def embed(self, prompts: Sequence[Prompt], starts: Sequence[int]) -> list[torch.Tensor]:
        """Embed the ends of prompts that were checked.

        Towers run for a prompt unless its end is text alone.

        Args:
            prompts: The prompts.
            starts: The first token of each that is needed.

        Returns:
            float[L - start, D] for each.
        """
        with_images = [
            bool(prompt.images) and self.image_token_id in prompt.input_ids[start:]
            for prompt, start in zip(prompts, starts, strict=True)
        ]
        trimmed = [
            prompt if whole else _end(prompt, start)
            for prompt, start, whole in zip(prompts, starts, with_images, strict=True)
        ]
        return [
            embedded[start:] if whole else embedded
            for embedded, start, whole in zip(self._embed(trimmed), starts, with_images, strict=True)
        ]

    def _embed(self, prompts: Sequence[Prompt]) -> list[torch.Tensor]:
        """float[L, D] for each."""
        device = self.embedding.weight.device
        given = [one.embeddings for one in prompts]
        own = [prompt for prompt in prompts if prompt.embeddings is None]
        ids = torch.tensor([one for prompt in own for one in prompt.input_ids], dtype=torch.long, device=device)
        if own:
            features = self._features([prompt.images for prompt in own if prompt.images])
            rows = self.embedding(ids)[None]
            if features is not None:
                assert self.assistant is not None
                rows = splice(rows, ids[None], features, self.assistant.config.image_token_id)
            embedded = iter(rows[0].split([len(prompt.input_ids) for prompt in own]))
        return [next(embedded) if one is None else one.to(device, self.embedding.weight.dtype) for one in given]

    def _features(self, images: Sequence[Any]) -> torch.Tensor | None:
        """float[features, D] of all images, in order."""
        if not images:
            return None
        assert self.assistant is not None
        # Slot maps of different kinds do not concatenate, and their images have several views each.
        batches = [[one] for one in images] if any("slot_indices" in one for one in images) else [images]
        features = [self.assistant.get_image_features(**self._joined(batch)) for batch in batches]
        return torch.cat([one.reshape(-1, one.shape[-1]) for one in features])

    def _joined(self, batch: Sequence[Any]) -> dict[str, Any]:
        """Inputs of `get_image_features`, for all images of a batch."""
        assert self.assistant is not None
        device = self.assistant.device
        joined: dict[str, Any] = {}
        for name in batch[0]:
            values = [one[name] for one in batch]
            if isinstance(values[0], list):
                joined[name] = [torch.cat(tensors).to(device) for tensors in zip(*values, strict=True)]
            else:
                joined[name] = torch.cat(values)
                if name != "grids":  # is used on the CPU
                    joined[name] = joined[name].to(device)
        return joined


def _end(prompt: Prompt, start: int) -> Prompt:
    """The tokens of a prompt from `start` on, all of them text or embeddings."""
    embeddings = None if prompt.embeddings is None else prompt.embeddings[start:]
    return Prompt(prompt.input_ids[start:], embeddings=embeddings)


def _count_features(assistant: MMChatForConditionalGeneration | None, images: Any) -> int:
    """Number of slots that images fill.

    Raises:
        UserError: A language model alone, or image inputs without pixels.
    """
    if not images:
        return 0
    if assistant is None:
        raise UserError("a language model alone takes no images")
    if "slot_indices" in images:
        return len(images["slot_indices"])
    pixels = images["pixel_values"]
    return len(pixels[0] if isinstance(pixels, list) else pixels) * assistant.image_tokens
