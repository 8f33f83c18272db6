"""`Generator`: answer questions about images, one at a time, in batches or as a stream."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import StoppingCriteriaList, TextIteratorStreamer

from mmchat.errors import UserError
from mmchat.images import load_image
from mmchat.inference.repetition import Loop, RepetitionGuard
from mmchat.inference.streaming import stream_text
from mmchat.model.directory import load_assistant
from mmchat.model.processor import pad_left

ImageInput = str | Path | bytes | Image.Image
"""A path, the bytes of an image file, or a PIL image."""
Message = dict[str, Any]
"""`{"role": "user" | "assistant", "content": str | parts}`. `{"type": "image"}` parts take the images in order."""
Stopped = Literal["end", "length", "repetition"]


@dataclass(frozen=True)
class Reading:
    """The text of one image."""

    text: str
    stopped: Stopped
    """Why generation stopped: the model ended the text, `max_new_tokens` was reached, or the text looped. One copy of a
    looping piece is kept."""


class Generator:
    """A loaded assistant that generates text.

    Decoding is greedy unless `temperature` is set, so the same input gives the same text. All methods that generate
    take the options `max_new_tokens` and `temperature` of `generate`.

    Args:
        model_dir: A model directory that mmchat wrote.
        device: A torch device. None uses CUDA if there is any.

    Raises:
        UserError: `model_dir` is not a model directory of mmchat.

    Examples:
        >>> from mmchat.inference import Generator
        >>> generator = Generator("runs/quickstart/model")
        >>> answer = generator.chat("How many digits are there?", "image.png", max_new_tokens=16)
    """

    def __init__(self, model_dir: str | Path, device: str | None = None) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, self.processor = load_assistant(model_dir)
        self.model = model.to(device)  # type: ignore[arg-type]  # transformers' wrapper of `to` loses `self`
        self.tokenizer = self.processor.tokenizer

    def chat(
        self,
        question: str,
        images: ImageInput | Sequence[ImageInput] = (),
        history: Sequence[Message] = (),
        **options: Any,
    ) -> str:
        """Answer one question.

        Args:
            question: The user's text.
            images: All images of the conversation, in order: those of the history first.
            history: Earlier messages; see `conversation`.
            **options: `max_new_tokens` and `temperature`, as in `generate`.

        Returns:
            The answer.

        Raises:
            UserError: An image cannot be read, an option is out of range, or the conversation exceeds the context.

        Examples:
            A second question about the same image, with the first exchange as history:

            >>> question = "How many digits are there?"
            >>> answer = generator.chat(question, "image.png", max_new_tokens=16)
            >>> history, images = generator.conversation(question, "image.png", [])
            >>> history.append({"role": "assistant", "content": answer})
            >>> answer = generator.chat("Which is the largest?", images, history, max_new_tokens=16)
        """
        messages, image_list = self.conversation(question, images, history)
        return self.generate([messages], [image_list], **options)[0]

    def stream(
        self,
        question: str,
        images: ImageInput | Sequence[ImageInput] = (),
        history: Sequence[Message] = (),
        **options: Any,
    ) -> Iterator[str]:
        """Answer one question piece by piece.

        Closing the iterator stops the model. Arguments and errors are those of `chat`; errors in the model are raised
        by the iterator.

        Returns:
            An iterator over pieces of the answer.

        Examples:
            >>> pieces = []
            >>> for piece in generator.stream("How many digits are there?", "image.png", max_new_tokens=16):
            ...     pieces.append(piece)
        """
        messages, image_list = self.conversation(question, images, history)

        def work(streamer: TextIteratorStreamer, criterion: Callable) -> None:
            self._generate([messages], [image_list], streamer=streamer, criteria=[criterion], **options)

        return stream_text(self.tokenizer, work)

    def caption(
        self, images: Sequence[ImageInput], prompt: str = "Describe the image.", batch_size: int = 8, **options: Any
    ) -> list[str]:
        """Answer the same prompt for each image, in batches.

        Args:
            images: The images, each a conversation of its own.
            prompt: The question about each image.
            batch_size: Images per batch.
            **options: `max_new_tokens` and `temperature`, as in `generate`.

        Returns:
            One text per image.

        Raises:
            UserError: As in `chat`.

        Examples:
            >>> captions = generator.caption(["image.png", "page.png"], max_new_tokens=16)
        """
        captions: list[str] = []
        for conversations, batch in self._prompt_batches(images, prompt, batch_size):
            captions += self.generate(conversations, batch, **options)
        return captions

    def read(
        self, images: Sequence[ImageInput], prompt: str, batch_size: int = 4, repeats: int = 8, **options: Any
    ) -> list[Reading]:
        """As `caption`, for long texts: a text that loops is stopped.

        Args:
            images: The images, each a conversation of its own.
            prompt: The question about each image.
            batch_size: Images per batch.
            repeats: A text stops when it ends in this many copies of a piece; see `RepetitionGuard`.
            **options: `max_new_tokens` and `temperature`, as in `generate`.

        Returns:
            One reading per image.

        Raises:
            UserError: As in `chat`, or `repeats` is less than 2.

        Examples:
            >>> from mmchat.constants import OCR_PROMPT
            >>> readings = generator.read(["page.png"], OCR_PROMPT, max_new_tokens=16)
            >>> readings[0].stopped in ("end", "length", "repetition")
            True
        """
        readings: list[Reading] = []
        for conversations, batch in self._prompt_batches(images, prompt, batch_size):
            guard = RepetitionGuard(repeats)
            new_tokens = self._generate(conversations, batch, criteria=[guard], **options)
            readings += [self._reading(row, loop) for row, loop in zip(new_tokens.tolist(), guard.loops(), strict=True)]
        return readings

    def _prompt_batches(
        self, images: Sequence[ImageInput], prompt: str, batch_size: int
    ) -> Iterator[tuple[list[list[Message]], list[list[ImageInput]]]]:
        """Conversations that ask `prompt` of one image each, and their images, batch by batch."""
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            yield [self.conversation(prompt, image, ())[0] for image in batch], [[image] for image in batch]

    def _reading(self, tokens: list[int], loop: Loop | None) -> Reading:
        """The tokens of a row without the padding after its end or its loop."""
        stopped: Stopped
        stops = self.model.generation_config.eos_token_id or []
        stops = [stops] if isinstance(stops, int) else stops
        end = next((index for index, token in enumerate(tokens) if token in stops), len(tokens))
        if loop is not None and loop.end <= end:
            tokens, stopped = tokens[: loop.begin + loop.period], "repetition"
        else:
            tokens, stopped = tokens[:end], "end" if end < len(tokens) else "length"
        return Reading(self.tokenizer.decode(tokens, skip_special_tokens=True).strip(), stopped)

    def conversation(
        self, question: str, images: ImageInput | Sequence[ImageInput], history: Sequence[Message]
    ) -> tuple[list[Message], list[ImageInput]]:
        """Append a question to a conversation. Images that the history does not contain come before its text.

        Args:
            question: The user's text.
            images: All images of the conversation, in order: those of the history first.
            history: Earlier messages in the chat dialect.

        Returns:
            The messages with the question, and the list of images.

        Raises:
            UserError: The history contains more images than `images`.
        """
        image_list = [images] if isinstance(images, str | Path | bytes | Image.Image) else list(images)
        mentioned = sum(
            part["type"] == "image"
            for message in history
            if isinstance(message["content"], list)
            for part in message["content"]
        )
        if mentioned > len(image_list):
            raise UserError(f"the history mentions {mentioned} images, but {len(image_list)} were given")
        content = [*({"type": "image"} for _ in image_list[mentioned:]), {"type": "text", "text": question}]
        return [*history, {"role": "user", "content": content}], image_list

    def generate(
        self,
        conversations: Sequence[list[Message]],
        images: Sequence[Sequence[ImageInput]],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
    ) -> list[str]:
        """Answer a batch of conversations.

        Args:
            conversations: Messages of each conversation. The last is the user's.
            images: Images of each conversation, in order.
            max_new_tokens: Longest answer, in tokens.
            temperature: 0 decodes greedily. Above 0 the answer is sampled.

        Returns:
            One answer per conversation.

        Raises:
            UserError: As in `chat`.

        Examples:
            >>> messages, images = generator.conversation("How many digits are there?", "image.png", [])
            >>> answers = generator.generate([messages], [images], max_new_tokens=16)
        """
        new_tokens = self._generate(conversations, images, max_new_tokens, temperature)
        return [text.strip() for text in self.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)]

    @torch.inference_mode()
    def _generate(
        self,
        conversations: Sequence[list[Message]],
        images: Sequence[Sequence[ImageInput]],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        streamer: TextIteratorStreamer | None = None,
        criteria: Sequence[Callable] = (),
    ) -> torch.Tensor:
        """The new tokens, int64[B, new tokens]. Rows are padded after their end."""
        if not (max_new_tokens >= 1 and 0 <= temperature < math.inf):
            raise UserError(
                f"max_new_tokens must be at least 1 and temperature a finite number of at least 0, "
                f"found {max_new_tokens} and {temperature}"
            )
        opened = [[_open(image) for image in row] for row in images]
        rows = [self._prompt(messages, image_list) for messages, image_list in zip(conversations, opened, strict=True)]
        inputs: dict[str, Any] = pad_left(rows, self.processor.pad_token_id)
        if any(opened):
            inputs.update(self.processor.image_inputs(opened))
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        prompt_length = inputs["input_ids"].shape[1]
        context = self.model.config.text_config.max_position_embeddings
        if prompt_length >= context:
            raise UserError(
                f"the conversation has {prompt_length} tokens with its images, the model's context is {context}; "
                "ask a shorter question or start a new conversation"
            )
        output = self.model.generate(
            **{name: _move(value, self.model.device) for name, value in inputs.items()},
            max_new_tokens=min(max_new_tokens, context - prompt_length),
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList(criteria),
            **sampling,
        )
        return output[:, prompt_length:]

    def _prompt(self, messages: list[Message], images: list[Image.Image]) -> list[int]:
        layouts = self.processor.layouts([image.size for image in images])
        return self.processor.render(messages, layouts, add_generation_prompt=True).input_ids


def _open(image: ImageInput) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else load_image(image)


def _move(value: Any, device: torch.device) -> Any:
    return [tensor.to(device) for tensor in value] if isinstance(value, list) else value.to(device)
