"""`Generator`: answer questions about images, one at a time, many at once or as a stream."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

from mmchat.inference.answer import Answer
from mmchat.inference.answer_options import AnswerOptions
from mmchat.inference.engine import Engine, EngineSettings, Prompt
from mmchat.inference.json_schema import JsonSchemas
from mmchat.inference.one_thread import one_thread
from mmchat.inference.placement import Quantize, loading_options, refuse_incomplete_blocks
from mmchat.inference.prompts import ImageInput, Message, append_question, conversation_prompt, text_prompt
from mmchat.inference.repetition import RepetitionGuard
from mmchat.inference.reply import Reason
from mmchat.model.directory import load_assistant


@dataclass(frozen=True)
class Reading:
    """The text of one image."""

    text: str
    stopped: Reason
    """Why generation stopped: the model ended the text, `max_new_tokens` was reached, or the text looped. One copy of a
    looping piece is kept."""


class Generator:
    """A loaded assistant that generates text.

    Requests share one engine (`mmchat.inference.engine`), which starts with the first of them: what is asked at the
    same time is computed together, and no answer depends on the others. Decoding is greedy unless `temperature` is set,
    so the same input gives the same text. All methods that generate take the options of `AnswerOptions` as keywords.

    Args:
        model_dir: A model directory that mmchat wrote.
        device: A torch device. None uses CUDA if there is any; "auto" spreads layers over all CUDA devices.
        dtype: Of the weights, as torch names it; "auto" is the type that they were saved in.
        quantize: "4bit" or "8bit" quantizes the language model (`placement`). Needs the extra `quantize`.
        settings: Limits of the engine.

    Raises:
        UserError: `model_dir` is not a model directory of mmchat, or there is no such device.

    Examples:
        >>> from mmchat.inference import Generator
        >>> generator = Generator("runs/quickstart/model")
        >>> answer = generator.chat("How many digits are there?", "image.png", max_new_tokens=16)
    """

    def __init__(
        self,
        model_dir: str | Path,
        device: str | None = None,
        *,
        dtype: str = "auto",
        quantize: Quantize | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        with one_thread():
            self.model, self.processor = load_assistant(model_dir, dtype, **loading_options(device, quantize))
        refuse_incomplete_blocks(self.model)
        self.tokenizer = self.processor.tokenizer
        self._settings = settings
        self._engine: Engine | None = None
        self._lock = Lock()

    @property
    def engine(self) -> Engine:
        """The engine. It is started here."""
        with self._lock:
            if self._engine is None:
                self._engine = Engine(self.model, self._settings, self.tokenizer)
            return self._engine

    @cached_property
    def _json_schemas(self) -> JsonSchemas:
        stops = self.model.generation_config.eos_token_id
        return JsonSchemas(self.tokenizer, [stops] if isinstance(stops, int) else list(stops or ()))

    def close(self) -> None:
        """Cancel what runs and free the engine's memory. The next request starts a new engine."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def submit(self, messages: Sequence[Message], images: Sequence[ImageInput] = (), **options: Any) -> Answer:
        """Queue a conversation. Returns at once; images are opened in another thread shortly before the request's turn.

        Args:
            messages: The conversation. The last message is the user's.
            images: Images of the conversation, in order.
            **options: Fields of `AnswerOptions`.

        Returns:
            The answer. It raises the UserErrors of images and of the context.

        Raises:
            UserError: An option is out of range, or the schema cannot be used.

        Examples:
            >>> messages, images = generator.conversation("How many digits are there?", "image.png", [])
            >>> answers = [generator.submit(messages, images, max_new_tokens=8) for _ in range(3)]
            >>> texts = [answer.result().text for answer in answers]
        """
        return self._submit(partial(self.prompt, messages, images), AnswerOptions(**options))

    def complete(self, text: str, **options: Any) -> Answer:
        """Queue a text that is continued, without the conversation template. Control tokens in it are text.

        Args:
            text: What the answer continues.
            **options: Fields of `AnswerOptions`.

        Returns:
            The continuation. White space around it is kept.

        Raises:
            UserError: As in `submit`, or the text exceeds the context.

        Examples:
            >>> text = generator.complete("Once upon a time", max_new_tokens=8).result().text
        """
        prompt = text_prompt(self.tokenizer, text)
        return self._submit(prompt, AnswerOptions(**options), after=prompt.input_ids)

    def _submit(
        self, prompt: Prompt | Callable[[], Prompt], options: AnswerOptions, after: Sequence[int] | None = None
    ) -> Answer:
        guard = None if options.repeats is None else RepetitionGuard(options.repeats)
        processors = [] if options.json_schema is None else [self._json_schemas.processor(options.json_schema)]
        handle = self.engine.submit(options.request(prompt, guard, processors))
        return Answer(handle, self.tokenizer, options.stop, guard, after)

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
            **options: Fields of `AnswerOptions`.

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
        return self.submit(*self.conversation(question, images, history), **options).result().text

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
        return iter(self.submit(*self.conversation(question, images, history), **options))

    def caption(self, images: Iterable[ImageInput], prompt: str = "Describe the image.", **options: Any) -> list[str]:
        """Answer the same prompt for each image.

        Args:
            images: The images, each a conversation of its own.
            prompt: The question about each image.
            **options: Fields of `AnswerOptions`.

        Returns:
            One text per image.

        Raises:
            UserError: As in `chat`.

        Examples:
            >>> captions = generator.caption(["image.png", "page.png"], max_new_tokens=16)
        """
        return [answer.result().text for answer in self.submit_all(self._ask_each(images, prompt), **options)]

    def read(self, images: Iterable[ImageInput], prompt: str, repeats: int = 8, **options: Any) -> list[Reading]:
        """As `caption`, for long texts: a text that loops is stopped.

        Args:
            images: The images, each a conversation of its own.
            prompt: The question about each image.
            repeats: A text stops when it ends in this many copies of a piece; see `RepetitionGuard`.
            **options: Fields of `AnswerOptions`.

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
        answers = self.submit_all(self._ask_each(images, prompt), repeats=repeats, **options)
        replies = [answer.result() for answer in answers]
        return [Reading(reply.text, reply.reason) for reply in replies]

    def generate(
        self, conversations: Sequence[list[Message]], images: Sequence[Sequence[ImageInput]], **options: Any
    ) -> list[str]:
        """Answer several conversations at once.

        Args:
            conversations: Messages of each conversation. The last is the user's.
            images: Images of each conversation, in order.
            **options: Fields of `AnswerOptions`.

        Returns:
            One answer per conversation.

        Raises:
            UserError: As in `chat`.

        Examples:
            >>> messages, images = generator.conversation("How many digits are there?", "image.png", [])
            >>> answers = generator.generate([messages], [images], max_new_tokens=16)
        """
        requests = zip(conversations, images, strict=True)
        return [answer.result().text for answer in self.submit_all(requests, **options)]

    def submit_all(
        self, requests: Iterable[tuple[Sequence[Message], Sequence[ImageInput]]], **options: Any
    ) -> Iterator[Answer]:
        """Submit conversations with their images, and yield their answers in order when they are complete.

        Twice as many requests as the engine has slots are in progress, so any number can be asked. Closing the iterator
        cancels them.

        Args:
            requests: Messages and images of each conversation.
            **options: Fields of `AnswerOptions`.

        Returns:
            An iterator over the answers.

        Examples:
            >>> asked = [generator.conversation("What is this?", image, []) for image in ("image.png", "page.png")]
            >>> texts = [answer.result().text for answer in generator.submit_all(asked, max_new_tokens=8)]
        """
        window: deque[Answer] = deque()
        try:
            for messages, images in requests:
                window.append(self.submit(messages, images, **options))
                if len(window) >= 2 * self.engine.limits.slots:
                    window[0].wait()
                    yield window.popleft()
            while window:
                window[0].wait()
                yield window.popleft()
        finally:
            for answer in window:
                answer.cancel()

    def _ask_each(self, images: Iterable[ImageInput], prompt: str) -> Iterator[tuple[list[Message], list[ImageInput]]]:
        return (self.conversation(prompt, image, ()) for image in images)

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
        return append_question(question, images, history)

    def prompt(self, messages: Sequence[Message], images: Sequence[ImageInput] = ()) -> Prompt:
        """The engine's input for an answer to a conversation. Opens and preprocesses the images.

        Args:
            messages: The conversation. The last message is the user's.
            images: Images of the conversation, in order.

        Raises:
            UserError: An image cannot be read, or messages and images do not fit.
        """
        return conversation_prompt(self.processor, messages, images)
