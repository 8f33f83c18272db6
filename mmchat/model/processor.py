"""`MMChatProcessor`: images and conversations become model inputs, in training and inference."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from mmchat.conversation import (
    DEFAULT_SLOTS,
    Rendered,
    SlotTokens,
    Turn,
    control_tokens,
    count_images,
    encode_prompt,
    merge_text_parts,
    render,
    to_jinja,
)
from mmchat.conversation.bounded_jinja import check_cost
from mmchat.errors import UserError
from mmchat.model.image_processor import MMChatImageProcessor, open_images
from mmchat.vision import ImageLayout, Size, TowerSpec, join_slot_maps


class MMChatProcessor(ProcessorMixin):
    """Tokenizer, image processor and the conversation template of a model.

    Args:
        image_processor: The image processor.
        tokenizer: A fast transformers tokenizer that has the slot tokens.
        chat_template: The Jinja chat template. None writes it from the other arguments.
        template: As in `MMChatConfig`.
        system: As in `MMChatConfig`.
        slots: As in `MMChatConfig`.
        image_tokens: Number of slots per view.
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
        # Typed text never becomes one of these. By default transformers only protects special tokens.
        tokenizer.chat_control_tokens = control_tokens(tokenizer)
        if "legacy" in vars(tokenizer):
            # Without it transformers opens a Llama tokenizer that encodes text after a token otherwise, and does not
            # save it.
            tokenizer.init_kwargs["legacy"] = tokenizer.legacy

    def set_towers(self, specs: list[TowerSpec], image_tokens: int) -> None:
        """Use other towers from now on, with `image_tokens` slots per view."""
        self.image_processor.towers = [spec.to_dict() for spec in specs]
        self.image_tokens = image_tokens

    @property
    def slot_tokens(self) -> SlotTokens:
        """`slots` as `SlotTokens`."""
        return SlotTokens(**self.slots)

    @property
    def pad_token_id(self) -> int:
        """The id to pad with: the tokenizer's pad token, or EOS if it has none."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def render(
        self,
        messages: Sequence[dict[str, Any]] | Sequence[Turn],
        layouts: Sequence[ImageLayout | int] | None = None,
        max_length: int | None = None,
        add_generation_prompt: bool = False,
        template: str | None = None,
    ) -> Rendered:
        """`mmchat.conversation.render` with this model's tokenizer, slots and template.

        Args:
            messages: As in `render`.
            layouts: The layout of each image, in reading order (`layouts`), or its number of views if all features of
                a view have a slot. None means one view per image; it is refused for messages with images if the number
                depends on the size.
            max_length: As in `render`.
            add_generation_prompt: As in `render`.
            template: Another template. It is used without the model's system message, because it may not support one.

        Raises:
            UserError: As in `render`.
        """
        template = template or self.template
        if layouts is None and self.image_processor.views_vary:
            layouts = ()
        return render(
            messages,
            template,
            self.tokenizer,
            image_tokens=self.image_tokens if layouts is None else [self._expansion(one) for one in layouts],
            system=self.system if template == self.template else None,
            max_length=max_length,
            slots=self.slot_tokens,
            add_generation_prompt=add_generation_prompt,
        )

    def _expansion(self, layout: ImageLayout | int) -> int | tuple[int | str, ...]:
        return layout * self.image_tokens if isinstance(layout, int) else layout.expansion

    def layouts(self, sizes: Sequence[Size]) -> list[ImageLayout]:
        """Views and slots of the images of one conversation.

        Args:
            sizes: Width and height of each image, in reading order.
        """
        return self.image_processor.layouts(sizes, self.image_tokens)

    def image_inputs(self, conversations: Sequence[Sequence[Image.Image]]) -> BatchFeature:
        """All that the model needs of images.

        Args:
            conversations: RGB images of each conversation, in order.

        Returns:
            `pixel_values` and `grids` of the image processor, and `slot_indices` and `slot_weights` if the images have
            slot maps (`Projectors.forward`).
        """
        inputs = self.image_processor(conversations)
        layouts = [layout for images in conversations for layout in self.layouts([image.size for image in images])]
        maps = [layout.slot_map for layout in layouts if layout.slot_map is not None]
        if maps:
            joined = join_slot_maps(maps, [layout.views * self.image_tokens for layout in layouts])
            inputs.update({name: torch.from_numpy(array) for name, array in joined.inputs.items()})
        return inputs

    def comparison_inputs(self) -> BatchFeature:
        """A fixed image and text that use every part of a model. Used to compare a model with its saved copy."""
        side = max(spec.image_size for spec in self.image_processor.specs)
        width = 2 * side if self.image_processor.views_vary else side
        image = Image.fromarray(np.linspace(0, 255, side * width * 3).astype(np.uint8).reshape(side, width, 3))
        messages = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A test."}]
        ids = torch.tensor([self.render(messages, self.layouts([image.size])).input_ids])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return BatchFeature({**inputs, **self.image_inputs([[image]])})

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        sanitize_control_tokens: bool = False,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Encode prompts that the chat template wrote, with their images, as a batch padded on the left.

        Args:
            images: Images in reading order, nested or flat; see `open_images`.
            text: One prompt or several, with one slot group (`<img><imgpad></img>`) per image. Each group is
                expanded to the slots of its image. Without it the images of an inner list are a conversation.
            sanitize_control_tokens: The text comes from `apply_chat_template` with the same argument, which marks
                control tokens that users typed.
            return_tensors: Ignored. The result always holds torch tensors.
            **kwargs: Ignored.

        Returns:
            `input_ids` and `attention_mask`, int64[B, L], if there is text; those of `image_inputs` if there are
            images.

        Raises:
            UserError: The numbers of slot groups and images differ.
        """
        if text is None:
            nested = images if isinstance(images, list | tuple) else [images]
            return BatchFeature({} if images is None else self.image_inputs([open_images(one) for one in nested]))
        prompts = [text] if isinstance(text, str) else list(text)
        opened = [] if images is None else open_images(images)
        tokens, sanitize = (self.tokenizer, self.slot_tokens), {"sanitize_control_tokens": sanitize_control_tokens}
        counts = [count_images(prompt, *tokens, **sanitize) for prompt in prompts]
        if sum(counts) != len(opened):
            raise UserError(f"the text has places for {sum(counts)} images, but {len(opened)} images were given")
        remaining = iter(opened)
        conversations = [list(islice(remaining, count)) for count in counts]
        rows = [
            encode_prompt(
                prompt, *tokens, [one.expansion for one in self.layouts([image.size for image in images])], **sanitize
            )
            for prompt, images in zip(prompts, conversations, strict=True)
        ]
        pixels = {} if images is None else self.image_inputs(conversations)
        return BatchFeature({**pixels, **pad_left(rows, self.pad_token_id)})

    def apply_chat_template(self, conversation: Any, *args: Any, tokenize: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but text that spells a control token stays text.

        Raises:
            UserError: The template refuses the conversation, or takes too much time or memory (`check_cost`).
        """
        kwargs.setdefault("sanitize_control_tokens", tokenize)
        if kwargs["sanitize_control_tokens"]:
            batched = bool(conversation) and isinstance(conversation[0], list)
            conversation = list(map(merge_text_parts, conversation)) if batched else merge_text_parts(conversation)
        template = kwargs.get("chat_template") or self.chat_template
        variables = {"add_generation_prompt": False, **kwargs, **self.tokenizer.special_tokens_map}
        for messages in conversation if conversation and isinstance(conversation[0], list) else [conversation]:
            check_cost(template, messages, variables)
        return super().apply_chat_template(conversation, *args, tokenize=tokenize, **kwargs)


def pad_left(rows: list[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad rows of token ids on the left, so that generation continues at the right edge.

    Returns:
        `input_ids` and `attention_mask`, int64[B, L].
    """
    length = max(map(len, rows))
    input_ids = torch.full((len(rows), length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(rows):
        input_ids[row, length - len(ids) :] = torch.tensor(ids)
        attention_mask[row, length - len(ids) :] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
