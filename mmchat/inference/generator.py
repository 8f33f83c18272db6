"""`Generator`: questions about images in, text out; one at a time, in batches, or as a stream.

generator = Generator("runs/quickstart/model")
print(generator.chat("How many digits are there?", "image.png"))
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

import torch
from PIL import Image
from transformers import StoppingCriteriaList, TextIteratorStreamer

from mmchat.errors import UserError
from mmchat.images import load_image
from mmchat.inference.repetition import Loop, RepetitionGuard
from mmchat.model.directory import load_assistant
from mmchat.model.processor import pad_left

ImageInput = str | Path | bytes | Image.Image
Message = dict[str, Any]
"""`{"role": "user" | "assistant", "content": str | parts}`; `{"type": "image"}` parts are filled in order."""


@dataclass(frozen=True)
class Reading:
    """stopped: by the model itself, by `max_new_tokens`, or because the text looped, of which one copy is left."""

    text: str
    stopped: Literal["end", "length", "repetition"]


class Generator:
    """An assistant ready to answer. Greedy unless `temperature` is given, so the same input gives the same text."""

    def __init__(self, model_dir: str | Path, device: str | None = None) -> None:
        """Raises UserError where `model_dir` is no model directory of mmchat."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, self.processor = load_assistant(model_dir)
        self.model = model.to(device)
        self.tokenizer = self.processor.tokenizer

    def chat(
        self,
        question: str,
        images: ImageInput | Sequence[ImageInput] = (),
        history: Sequence[Message] = (),
        **options: Any,
    ) -> str:
        """Answer one question; `history` holds the turns before it, whose images `images` includes."""
        messages, image_list = self.conversation(question, images, history)
        return self.generate([messages], [image_list], **options)[0]

    def stream(
        self,
        question: str,
        images: ImageInput | Sequence[ImageInput] = (),
        history: Sequence[Message] = (),
        **options: Any,
    ) -> Iterator[str]:
        """As `chat`, in pieces as they are generated. An error inside the model is raised here."""
        messages, image_list = self.conversation(question, images, history)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []
        nobody_listens = Event()

        def work() -> None:
            try:
                criteria = [lambda ids, scores: _stop_all(ids, nobody_listens)]
                self._generate([messages], [image_list], streamer=streamer, criteria=criteria, **options)
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        # The first token of an answer carries the space that separates it from the prompt.
        first = True
        try:
            for piece in streamer:
                piece = piece.lstrip() if first else piece
                if piece:
                    first = False
                    yield piece
        finally:
            # Reached as well when the caller closes the stream in the middle: the model must not go on alone.
            nobody_listens.set()
            thread.join()
        if failure:
            raise failure[0]

    def caption(
        self, images: Sequence[ImageInput], prompt: str = "Describe the image.", batch_size: int = 8, **options: Any
    ) -> list[str]:
        """One text per image, generated in batches."""
        captions: list[str] = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            conversations = [self.conversation(prompt, image, ())[0] for image in batch]
            captions += self.generate(conversations, [[image] for image in batch], **options)
        return captions

    def read(
        self, images: Sequence[ImageInput], prompt: str, batch_size: int = 4, repeats: int = 8, **options: Any
    ) -> list[Reading]:
        """As `caption`, for long texts: one that ends in `repeats` copies of a piece is stopped (`RepetitionGuard`)."""
        readings: list[Reading] = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            conversations = [self.conversation(prompt, image, ())[0] for image in batch]
            guard = RepetitionGuard(repeats)
            new_tokens = self._generate(conversations, [[image] for image in batch], criteria=[guard], **options)
            readings += [self._reading(row, loop) for row, loop in zip(new_tokens.tolist(), guard.loops(), strict=True)]
        return readings

    def _reading(self, tokens: list[int], loop: Loop | None) -> Reading:
        """What follows the end of a row, by itself or by a loop, only fills the batch."""
        stops = self.model.generation_config.eos_token_id or []
        stops = [stops] if isinstance(stops, int) else stops
        end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
        if loop is not None and loop.end <= end:
            tokens, stopped = tokens[: loop.begin + loop.period], "repetition"
        else:
            tokens, stopped = tokens[:end], "end" if end < len(tokens) else "length"
        return Reading(self.tokenizer.decode(tokens, skip_special_tokens=True).strip(), stopped)

    def conversation(
        self, question: str, images: ImageInput | Sequence[ImageInput], history: Sequence[Message]
    ) -> tuple[list[Message], list[ImageInput]]:
        """Messages in the chat dialect; images that the history does not mention come before the question."""
        image_list = [images] if isinstance(images, str | Path | bytes | Image.Image) else list(images)
        mentioned = sum(
            part["type"] == "image"
            for message in history
            if isinstance(message["content"], list)
            for part in message["content"]
        )
        if mentioned > len(image_list):
            raise UserError(f"the history mentions {mentioned} images, but {len(image_list)} were given")
        parts: list[dict[str, str]] = []
        for _ in image_list[mentioned:]:
            parts += [{"type": "image"}, {"type": "text", "text": "\n"}]
        content = [*parts, {"type": "text", "text": question}]
        return [*history, {"role": "user", "content": content}], image_list

    def generate(
        self, conversations: Sequence[list[Message]], images: Sequence[Sequence[ImageInput]], **options: Any
    ) -> list[str]:
        """Answers to a batch of conversations, each with its images; see `_generate` for the options."""
        new_tokens = self._generate(conversations, images, **options)
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
        """int[B, new tokens]. temperature 0 is greedy; above, it samples.

        Raises:
            UserError: an option out of range, or a conversation that leaves no room in the model's context.
        """
        if not (max_new_tokens >= 1 and 0 <= temperature < math.inf):
            raise UserError(
                f"max_new_tokens must be at least 1 and temperature a number from 0 up, "
                f"found {max_new_tokens} and {temperature}"
            )
        opened = [[_open(image) for image in one] for one in images]
        rows = [self._prompt(messages, image_list) for messages, image_list in zip(conversations, opened, strict=True)]
        inputs: dict[str, Any] = pad_left(rows, self.processor.pad_token_id)
        if any(opened):
            inputs.update(self.processor.image_processor(opened))
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
        views = [self.processor.image_processor.views(image.size) for image in images]
        return self.processor.render(messages, views, add_generation_prompt=True).input_ids


def _stop_all(ids: torch.Tensor, stop: Event) -> torch.Tensor:
    """bool[B]: whether each row of a batch is to end now."""
    return torch.full((len(ids),), stop.is_set(), device=ids.device)


def _open(image: ImageInput) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else load_image(image)


def _move(value: Any, device: torch.device) -> Any:
    return [tensor.to(device) for tensor in value] if isinstance(value, list) else value.to(device)
