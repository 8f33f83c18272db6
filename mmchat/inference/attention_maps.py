"""Where a model looked: attention from each word of an answer to the slots of the images."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from math import isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmchat.errors import UserError
from mmchat.inference.engine.prompts import PromptEmbedder
from mmchat.inference.engine.request import Prompt
from mmchat.inference.generator import Generator, Message
from mmchat.model.projectors.registry import projector_kind
from mmchat.model.projectors.resampler import ResamplerKind
from mmchat.model.projectors.slots import slots_per_tower
from mmchat.vision import ImageLayout

ROWS_AT_ONCE = 32
"""Tokens whose attention is held at a time: layers x heads x this x context floats."""


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of the words of an answer, averaged over layers, heads and the tokens of a word."""

    words: tuple[str, ...]
    shares: tuple[float, ...]
    """Per word, the share of its attention that falls on image slots, from 0 to 1."""
    heat: tuple[tuple[np.ndarray, ...], ...]
    """Per image and view: float[words, rows, columns], the attention that falls on each place of the view."""


def attention_maps(
    generator: Generator, messages: Sequence[Message], images: Sequence[Image.Image], answer: str
) -> AttentionMaps:
    """Compute attention maps of a finished answer, in a forward of its own.

    The attention of a word is that of the positions that predicted its tokens. The weights are shared with the
    generator, which may work meanwhile. Attention says what was read; it does not prove what the answer rests on.

    Args:
        generator: The model.
        messages: The conversation up to the question; see `Generator.generate`.
        images: Its images, RGB.
        answer: The answer that the model gave.

    Raises:
        UserError: There are no images, the answer is empty, or the model's slots have no place in an image.
    """
    if not images or not answer.strip():
        raise UserError("attention maps need a conversation with an image and an answer that is not empty")
    processor, config = generator.processor, generator.model.config
    first, side = _square_of_view(generator)
    layouts = processor.layouts([image.size for image in images])
    prompt = processor.render(messages, layouts, add_generation_prompt=True).input_ids
    full = processor.render([*messages, {"role": "assistant", "content": answer.strip()}], layouts)
    ids = list(full.input_ids)
    if ids[: len(prompt)] != list(prompt):
        raise UserError(f"template {config.template} writes an answer otherwise once it is complete; no attention maps")
    rows = _attention(generator, ids, dict(processor.image_inputs([list(images)])), len(prompt))
    words, of_token = _words(generator.tokenizer, ids[len(prompt) :])
    merged = np.stack([rows[of_token == number].mean(0) for number in range(len(words))])
    slots = np.flatnonzero(np.asarray(ids) == config.image_token_id)
    bounds = pairwise(accumulate((layout.slots for layout in layouts), initial=0))
    heat = []
    for (start, end), layout, image in zip(bounds, layouts, images, strict=True):
        features = _by_feature(merged[:, slots[start:end]], layout, processor.image_tokens)
        grid = processor.image_processor.specs[0].grid(image.size)
        square = features[:, :, first : first + side**2].reshape(len(words), layout.views, side, side)
        heat.append((features.reshape(len(words), *grid),) if grid else tuple(square.swapaxes(0, 1)))
    return AttentionMaps(tuple(words), tuple(merged[:, slots].sum(1).tolist()), tuple(heat))


def _square_of_view(generator: Generator) -> tuple[int, int]:
    """The first of the slots of a view that show it in the first tower, and the side of the square that they form.

    Raises:
        UserError: The slots are queries, or do not form a square.
    """
    specs, names = generator.processor.image_processor.specs, generator.model.config.projectors
    if isinstance(projector_kind(names[0]), ResamplerKind):
        raise UserError(f"slots of projector {names[0]} have no place in the image: each reads all of it")
    slots = slots_per_tower(specs, names)[0]
    side = isqrt(slots)
    if slots - side**2 not in (0, 1):
        raise UserError(f"the {slots} slots of a view form no square, so they have no place in the image")
    return slots - side**2, side  # a class token is the first


@torch.inference_mode()
def _attention(generator: Generator, ids: list[int], images: dict[str, Any], start: int) -> np.ndarray:
    """float[tokens from `start` on, L]: for each, the attention of the position before it, over layers and heads."""
    model = generator.model
    embedded = PromptEmbedder(model).embed([Prompt(ids, images)], [0])[0][None]
    language_model = _sharing_weights(model.language_model)
    past = language_model(inputs_embeds=embedded[:, : start - 1], use_cache=True, logits_to_keep=1).past_key_values
    language_model.set_attn_implementation("eager")  # the others do not give weights
    rows = np.zeros((len(ids) - start, len(ids)), np.float32)
    for first in range(start - 1, len(ids) - 1, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, len(ids) - 1)
        output = language_model(
            inputs_embeds=embedded[:, first:last],
            past_key_values=past,
            use_cache=True,
            output_attentions=True,
            logits_to_keep=1,
        )
        mean = torch.stack([layer[0].float().mean(0) for layer in output.attentions]).mean(0)
        rows[first - start + 1 : last - start + 1, : mean.shape[1]] = mean.cpu().numpy()
    return rows


def _sharing_weights(model: torch.nn.Module) -> Any:
    """A copy of a module whose tensors are those of the original. Its settings can be changed alone."""
    packed = (getattr(vars(module).get("forward"), "args", ()) for module in model.modules())  # PrepackedLinears
    tensors = chain(model.parameters(), model.buffers(), *packed)
    return copy.deepcopy(model, {id(one): one for one in tensors if isinstance(one, torch.Tensor)})


def _words(tokenizer: Any, ids: list[int]) -> tuple[list[str], np.ndarray]:
    """The words of new tokens, and the number of the word of each token; special tokens belong to the last word."""
    of_token = []
    words: list[str] = []
    for count in range(1, len(ids) + 1):
        words = tokenizer.decode(ids[:count], skip_special_tokens=True).split()
        of_token.append(max(len(words) - 1, 0))
    return words, np.asarray(of_token)


def _by_feature(attention: np.ndarray, layout: ImageLayout, per_view: int) -> np.ndarray:
    """Attention to the slots of one image, float[words, slots], as float[words, views, features of a view]."""
    if layout.slot_map is None:
        return attention.reshape(len(attention), layout.views, per_view)
    features = np.zeros((layout.views * per_view, len(attention)), np.float32)
    indices = layout.slot_map.indices.reshape(len(layout.slot_map), -1)
    weights = np.ones(indices.shape, np.float32) if layout.slot_map.weights is None else layout.slot_map.weights
    for tap, weight in zip(indices.T, weights.T, strict=True):
        shown = tap >= 0  # not a newline
        np.add.at(features, tap[shown], (attention * weight)[:, shown].T)
    return features.T.reshape(len(attention), layout.views, per_view)
