"""The processor: images and conversations become the model's inputs, in training and inference alike."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images

from mmchat.conversation import (
    DEFAULT_SLOTS,
    Rendered,
    SlotTokens,
    control_tokens,
    count_images,
    encode_prompt,
    merge_text_parts,
    render,
    to_jinja,
)
from mmchat.errors import UserError
from mmchat.images import load_image
from mmchat.vision import Grid, Size, TowerSpec, normalise, preprocess


class MMChatImageProcessor(BaseImageProcessor):
    """One composite image processor for all towers: each sees the same image in its own preprocessing.

    towers: one `TowerSpec.to_dict()` per tower, in the model's order.
    """

    model_input_names = ["pixel_values", "grids"]

    def __init__(self, towers: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.towers = towers or []

    @property
    def specs(self) -> list[TowerSpec]:
        return [TowerSpec.from_dict(tower) for tower in self.towers]

    @property
    def views_vary(self) -> bool:
        """Whether the number of an image's views hangs on its size."""
        return any(spec.native or spec.preprocessing.tiling for spec in self.specs)

    def views(self, size: Size) -> int:
        """How many views every tower has of an image of this size."""
        return self.specs[0].views(size)

    def grids(self, sizes: Iterable[Size]) -> list[Grid] | None:
        """Rows and columns of patches of images of these sizes; None where their aspect is not native."""
        spec = self.specs[0]
        return [spec.grid(size) for size in sizes] if spec.native else None

    @property
    def fewest_views(self) -> int:
        """Any image has so many or more."""
        tiling = self.specs[0].preprocessing.tiling
        return 1 if tiling is None else tiling.fewest_views

    def pixels(self, image: Image.Image | Sequence[Image.Image]) -> list[np.ndarray]:
        """One image for every tower, or one for each: uint8[views, 3, H, W] each, not normalised yet."""
        seen = [image] * len(self.towers) if isinstance(image, Image.Image) else image
        return [preprocess(one, spec) for one, spec in zip(seen, self.specs, strict=True)]

    def __call__(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """`pixel_values`: float32[views, 3, H, W], those of the first image first; a list of such where there are
        several towers. `grids`: int64[images, 2], rows and columns of their patches, where the aspect is native."""
        opened = open_images(images)
        pixels = [self.pixels(image) for image in opened]
        per_tower = [
            torch.from_numpy(normalise([view for seen in pixels for view in seen[tower]], spec))
            for tower, spec in enumerate(self.specs)
        ]
        data = {"pixel_values": per_tower[0] if len(per_tower) == 1 else per_tower}
        if grids := self.grids(image.size for image in opened):
            data["grids"] = torch.tensor(grids)
        return BatchFeature(data)

    preprocess = __call__


def open_images(images: Any) -> list[Image.Image]:
    """RGB images in reading order, from a nested or flat list of PIL images, arrays uint8[H, W, 3] and local paths.

    Raises:
        UserError: an image that cannot be read, or one that would have to be fetched.
        ValueError: something else.
    """
    if isinstance(images, list | tuple):
        return [one for image in images for one in open_images(image)]
    if isinstance(images, str | Path):
        if str(images).startswith(("http://", "https://", "data:")):
            raise UserError(f"image {str(images)[:80]} is no local file; nothing is fetched here, so pass a PIL image")
        return [load_image(images)]
    return [_as_rgb(image) for image in make_flat_list_of_images(images)]


def _as_rgb(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3:
        return Image.fromarray(image)
    raise ValueError(f"expected a PIL image, a path or uint8[H, W, 3], found {type(image).__name__}")


class MMChatProcessor(ProcessorMixin):
    """Tokenizer, image processor and the template that the model was trained with.

    template, system, slots: as in `MMChatConfig`. image_tokens: slots of one view. chat_template: the Jinja of
    these, which is made here unless a saved one is given.
    """

    def __init__(
        self,
        image_processor: MMChatImageProcessor | None = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        template: str = "vicuna_v1",
        system: str | None = None,
        slots: dict[str, str | None] | None = None,
        image_tokens: int = 256,
    ) -> None:
        slots = slots or DEFAULT_SLOTS.to_dict()
        if chat_template is None:
            chat_template = to_jinja(template, SlotTokens(**slots), tokenizer, system)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.template = template
        self.system = system
        self.slots = slots
        self.image_tokens = image_tokens
        # What typed text must never become; transformers marks only special tokens unless told.
        tokenizer.chat_control_tokens = control_tokens(tokenizer)

    def set_towers(self, specs: list[TowerSpec], image_tokens: int) -> None:
        """Prepare images for other towers from now on, with so many slots for a view."""
        self.image_processor.towers = [spec.to_dict() for spec in specs]
        self.image_tokens = image_tokens

    @property
    def slot_tokens(self) -> SlotTokens:
        return SlotTokens(**self.slots)

    @property
    def pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def render(
        self,
        messages: list[dict],
        views: Sequence[int] | None = None,
        max_length: int | None = None,
        add_generation_prompt: bool = False,
        template: str | None = None,
    ) -> Rendered:
        """`mmchat.conversation.render` with this model's tokenizer and slots, and its template or another.

        The model's own system message goes with its own template only: another may have no place for it.

        views: of each image, in reading order (`image_processor.views`). None: one of each; not enough where their
            number hangs on an image's size.
        """
        template = template or self.template
        if views is None and self.image_processor.views_vary:
            views = ()
        return render(
            messages,
            template,
            self.tokenizer,
            image_tokens=self.image_tokens if views is None else [count * self.image_tokens for count in views],
            system=self.system if template == self.template else None,
            max_length=max_length,
            slots=self.slot_tokens,
            add_generation_prompt=add_generation_prompt,
        )

    def comparison_inputs(self) -> BatchFeature:
        """A fixed input that exercises every part of a model; used to compare a model with its saved copy."""
        side = max(spec.image_size for spec in self.image_processor.specs)
        width = 2 * side if self.image_processor.views_vary else side
        image = Image.fromarray(np.linspace(0, 255, side * width * 3).astype(np.uint8).reshape(side, width, 3))
        messages = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A test."}]
        ids = torch.tensor([self.render(messages, [self.image_processor.views(image.size)]).input_ids])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return BatchFeature({**inputs, **self.image_processor([image])})

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        sanitize_control_tokens: bool = False,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Prompts made by the chat template, with their images, as a batch of tensors padded on the left.

        Args:
            images: images in reading order, nested or flat; see `open_images`.
            text: one slot group (`<img><imgpad></img>`) per image; each becomes as many slots as the image needs.
            sanitize_control_tokens: the text comes from `apply_chat_template`, which marked what users typed.

        Raises:
            UserError: the numbers of slot groups and images differ.
        """
        data: dict[str, Any] = {}
        opened = [] if images is None else open_images(images)
        if images is not None:
            data.update(self.image_processor(opened))
        if text is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            words, sanitize = (self.tokenizer, self.slot_tokens), {"sanitize_control_tokens": sanitize_control_tokens}
            places = [count_images(prompt, *words, **sanitize) for prompt in prompts]
            if sum(places) != len(opened):
                raise UserError(f"the text has places for {sum(places)} images, but {len(opened)} images were given")
            slots = (self.image_tokens * self.image_processor.views(image.size) for image in opened)
            rows = [
                encode_prompt(prompt, *words, list(islice(slots, images)), **sanitize)
                for prompt, images in zip(prompts, places, strict=True)
            ]
            data.update(pad_left(rows, self.pad_token_id))
        return BatchFeature(data)

    def apply_chat_template(self, conversation: Any, *args: Any, tokenize: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but what a user types is text, even where it spells a control token."""
        kwargs.setdefault("sanitize_control_tokens", tokenize)
        if kwargs["sanitize_control_tokens"]:
            batched = bool(conversation) and isinstance(conversation[0], list)
            conversation = list(map(merge_text_parts, conversation)) if batched else merge_text_parts(conversation)
        return super().apply_chat_template(conversation, *args, tokenize=tokenize, **kwargs)


def pad_left(rows: list[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, int[B, L]; generation continues at the right edge, so padding goes left."""
    length = max(map(len, rows))
    input_ids = torch.full((len(rows), length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(rows):
        input_ids[row, length - len(ids) :] = torch.tensor(ids)
        attention_mask[row, length - len(ids) :] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
