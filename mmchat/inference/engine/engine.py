"""`Engine`: one thread steps the model, and requests join and leave at every step."""

import heapq
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from threading import Condition, Thread
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel

from mmchat.errors import UserError
from mmchat.inference.engine.cache import default_budget, layer_shapes
from mmchat.inference.engine.cache_size import CacheLimits
from mmchat.inference.engine.decoder import Decoder, refuse_untrue
from mmchat.inference.engine.prefixes import prompt_keys
from mmchat.inference.engine.prompts import PromptEmbedder
from mmchat.inference.engine.request import FinishReason, Handle, Prompt, Request
from mmchat.inference.engine.sampling import Sampler, choose_tokens, token_logprobs
from mmchat.inference.engine.scheduler import Chunk, Running, Scheduler
from mmchat.inference.engine.settings import EngineSettings
from mmchat.inference.engine.status import Counters, Status
from mmchat.inference.one_thread import compute_alone, one_thread, use_threads
from mmchat.model.context import context_length
from mmchat.model.modeling import MMChatForConditionalGeneration
from mmchat.model.prepacked_linear import PrepackedLinears

UNBOUNDED_LENGTH = 4096
"""Tokens of a slot for a language model whose config names no limit."""


@dataclass(order=True)
class _Unprepared:
    order: tuple[int, int]
    handle: Handle = field(compare=False)
    request: Request = field(compare=False)
    prepare: Callable[[], Prompt] = field(compare=False)


class Engine:
    """Answers many requests at once on one model.

    A request is admitted when the budget has room for all the tokens that it may come to, so memory never runs out in
    the middle of an answer. A prompt that begins like an earlier one, with the same images, takes over its keys and
    values: the second question about an image costs only its own tokens. What is computed for a request does not depend
    on the others: slots are independent rows, and each request has its own sampler. An error of one request ends that
    request.

    Args:
        model: An assistant, or a language model for prompts without images. It must not be used by others meanwhile.
        settings: Limits.
        tokenizer: Needed for stop strings only.

    Raises:
        UserError: The model keeps something else than keys and values.

    Examples:
        >>> from mmchat.inference import Generator
        >>> from mmchat.inference.engine import Engine, Prompt, Request
        >>> generator = Generator("runs/quickstart/model")
        >>> ids = generator.tokenizer("How many digits are there?").input_ids
        >>> with Engine(generator.model) as engine:
        ...     handles = [engine.submit(Request(Prompt(ids), max_new_tokens=4)) for _ in range(3)]
        ...     answers = [handle.result().ids for handle in handles]
        >>> len(answers)
        3
    """

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, settings: EngineSettings | None = None, tokenizer: Any = None) -> None:
        settings = settings or EngineSettings()
        language_model = model.language_model if isinstance(model, MMChatForConditionalGeneration) else model
        context = context_length(language_model.config)
        threads = torch.get_num_threads()
        with one_thread():
            self._prepacked = PrepackedLinears(model)
            layers = layer_shapes(language_model)
            refuse_untrue(language_model, layers)
        budget = default_budget(model.device) if settings.cache_bytes is None else settings.cache_bytes
        length = min(settings.max_length or context or UNBOUNDED_LENGTH, context or sys.maxsize)
        token_bytes = sum(layer.size for layer in layers) * language_model.dtype.itemsize
        self.limits = CacheLimits(settings.slots, length, token_bytes, budget)
        self._limit = "max_length of the engine" if context is None or length < context else "the model's context"
        if self.limits.longest < length:
            self._limit = f"what the cache's budget of {budget / 2**20:,.1f} MiB holds"
        self.counters = Counters()
        self._generation_config = model.generation_config
        self._tokenizer = tokenizer
        self._embedder = PromptEmbedder(model)
        self._decoder = Decoder(language_model, layers)
        self._scheduler = Scheduler(self.limits, settings.prefill_tokens, self._decoder.packs)
        self._changed = Condition()
        self._arrived: list[Running] = []
        self._unprepared: list[_Unprepared] = []
        self._in_preparation = 0
        self._numbers = count()
        self._closed = False
        self._crash: BaseException | None = None
        self._pool = ThreadPoolExecutor(settings.workers, "mmchat-prepare", initializer=compute_alone)
        self._thread = Thread(target=self._work, args=(threads,), name="mmchat-engine", daemon=True)
        self._thread.start()

    @property
    def status(self) -> Status:
        """What the engine holds now. May be read from any thread."""
        with self._changed:
            waiting = len(self._unprepared) + self._in_preparation + len(self._arrived) + self._scheduler.waiting
        cache = self._decoder.cache
        return Status(waiting, len(self._scheduler.running), cache.size.slots, cache.size.length, cache.bytes)

    def submit(self, request: Request) -> Handle:
        """Queue a request.

        Raises:
            UserError: The prompt does not fit the model or a slot. If the prompt is a function, the handle raises it.
            RuntimeError: The engine is closed.
        """
        if request.stop_strings and self._tokenizer is None:
            raise UserError("stop_strings need an engine with a tokenizer")
        request = request.with_defaults(self._generation_config)
        handle = Handle(request, self._wake)
        prompt = request.prompt
        ready = self._running(handle, request, prompt) if isinstance(prompt, Prompt) else None
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed") from self._crash
            if ready is not None:
                self._arrived.append(ready)
            elif not isinstance(prompt, Prompt):
                order = (-request.priority, next(self._numbers))
                heapq.heappush(self._unprepared, _Unprepared(order, handle, request, prompt))
                self._prepare_ahead()
            self._changed.notify_all()
        return handle

    def close(self) -> None:
        """Cancel what runs, stop the thread and give the cache back. Closing twice does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._pool.shutdown()
        self._drop()
        self._decoder.cache.release()
        self._prepacked.undo()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Preparation, in worker threads

    def _running(self, handle: Handle, request: Request, prompt: Prompt) -> Running:
        """A request that can be admitted. Raises UserError if its prompt cannot."""
        self._embedder.check(prompt)
        length = len(prompt.input_ids)
        longest = self.limits.longest
        if length >= longest:
            raise UserError(
                f"the conversation has {length} tokens with its images, but {self._limit} is {longest}; "
                "ask a shorter question or start a new conversation"
            )
        handle.prompt_tokens = length
        keys = prompt_keys(prompt, self._embedder.image_token_id)
        running = Running(handle, request, prompt, keys, min(request.max_new_tokens, longest - length))
        running.sampler = Sampler(request, prompt.input_ids, self._decoder.device)
        return running

    def _prepare_ahead(self) -> None:
        """Prepare the next prompts, two per slot at most, because pixels take memory. Called with the lock held."""
        if self._closed:
            return
        while self._unprepared and self._in_preparation + len(self._arrived) + self._scheduler.waiting < (
            2 * self.limits.slots
        ):
            self._in_preparation += 1
            self._pool.submit(self._prepare, heapq.heappop(self._unprepared))

    def _prepare(self, one: _Unprepared) -> None:
        ready = None
        try:
            if not one.handle.done and not self._closed:
                ready = self._running(one.handle, one.request, one.prepare())
        except Exception as error:
            one.handle.fail(error)
        with self._changed:
            self._in_preparation -= 1
            if self._closed:
                self._end(one.handle)
            elif ready is not None:
                self._arrived.append(ready)
            self._prepare_ahead()
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # The thread that steps the model

    def _work(self, threads: int) -> None:
        use_threads(threads)
        try:
            with torch.inference_mode():
                while self._receive():
                    self._step()
        except BaseException as error:  # a defect: nobody may wait forever
            with self._changed:
                self._closed, self._crash = True, error
            self._drop()

    def _receive(self) -> bool:
        """Wait for work and take what arrived. False if the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._arrived or not self._scheduler.idle)
            for one in self._arrived:
                self._scheduler.add(one)
            self._arrived.clear()
            return not self._closed

    def _drop(self) -> None:
        """End all requests, except those in preparation: `_prepare` ends them."""
        with self._changed:
            handles = [one.handle for one in (*self._scheduler.drop_all(), *self._arrived)]
            handles += [one.handle for one in self._unprepared]
            self._arrived.clear()
            self._unprepared.clear()
        for handle in handles:
            self._end(handle)

    def _end(self, handle: Handle) -> None:
        """End a request that a closed engine cannot answer. Does nothing if it has ended."""
        if self._crash is None:
            handle.finish("cancelled")
        else:
            handle.fail(self._crash)

    def _step(self) -> None:
        """Admit, prefill one chunk, decode every request that has a token."""
        for one in self._scheduler.running:
            if one.handle.done:
                self._scheduler.leave(one)
        self._admit()
        with self._changed:
            self._prepare_ahead()
        self.counters.most_running = max(self.counters.most_running, len(self._scheduler.running))
        chunk = self._scheduler.next_chunk()
        if chunk is not None:
            self._prefill(chunk)
        span = self._scheduler.decode_span()
        if span is not None:
            self._decode(*span)

    def _admit(self) -> None:
        """Give slots to requests that wait, and grow the cache for them."""
        scheduler, cache = self._scheduler, self._decoder.cache
        size = scheduler.next_size()
        if size != cache.size:
            cache.copy_all(scheduler.resize(size))
            cache.resize(size)
        before = len(scheduler.prefilling)
        cache.copy_all(scheduler.admit())
        self.counters.shared += sum(one.filled for one in list(scheduler.prefilling)[before:])
        cache.copy_all(scheduler.close_holes())

    def _prefill(self, chunk: Chunk) -> None:
        try:
            self._embed(chunk.rows)
            pieces = [one.embeddings[:length] for one, length in zip(chunk.rows, chunk.lengths, strict=True)]
            logits = self._decoder.prefill([one.slot for one in chunk.rows], pieces, chunk.rows[0].filled)
        except Exception as error:
            if len(chunk.rows) == 1:
                self._fail(chunk.rows[0], error)
            else:  # one of them is at fault
                for one, length in zip(chunk.rows, chunk.lengths, strict=True):
                    self._prefill(Chunk([one], [length]))
            return
        self.counters.prefilled += sum(chunk.lengths)
        for one, length in zip(chunk.rows, chunk.lengths, strict=True):
            one.embeddings = one.embeddings[length:] if length < len(one.embeddings) else None
        complete = self._scheduler.prefilled(chunk)
        if complete:
            chosen = choose_tokens(logits, [one.sampler for one in complete], [one.ids for one in complete])
            for row, (one, token) in enumerate(zip(complete, chosen, strict=True)):
                self._take(one, token, logits[row])

    def _embed(self, rows: list[Running]) -> None:
        missing = [one for one in rows if one.embeddings is None]
        embedded = self._embedder.embed([one.prompt for one in missing], [one.filled for one in missing])
        for one, embeddings in zip(missing, embedded, strict=True):
            one.embeddings = embeddings

    def _decode(self, first: int, stop: int) -> None:
        span = self._scheduler.slots[first:stop]
        rows = [one if one is not None and one.ids else None for one in span]
        tokens = [0 if one is None else one.ids[-1] for one in rows]
        # A slot without a request to decode writes where nothing is.
        positions = [self._scheduler.next_position(slot) for slot in range(first, stop)]
        active = [one for one in rows if one is not None]
        width = max(one.cached for one in active) + 1
        try:
            logits = self._decoder.decode(first, tokens, positions, width)
        except Exception as error:
            if len(active) == 1:
                self._fail(active[0], error)
            else:  # one of them is at fault
                for one in active:
                    self._decode(one.slot, one.slot + 1)
            return
        self.counters.decode_steps += 1
        self.counters.decoded += len(active)
        samplers = [None if one is None else one.sampler for one in rows]
        chosen = choose_tokens(logits, samplers, [[] if one is None else one.ids for one in rows])
        for row, (request, token) in enumerate(zip(rows, chosen, strict=True)):
            if request is not None:
                self._take(request, token, logits[row])

    def _take(self, one: Running, token: int | Exception, logits: torch.Tensor) -> None:
        """Add a token to a request, and end it if that was the last."""
        if isinstance(token, Exception):
            self._fail(one, token)
            return
        one.ids.append(token)
        top = one.request.top_logprobs
        one.handle.push(token, None if top is None else token_logprobs(logits, token, top))
        try:
            reason = self._reason(one, token)
        except Exception as error:  # of the caller's own stop_when
            self._fail(one, error)
            return
        if reason is not None:
            self._scheduler.leave(one)
            one.handle.finish(reason)

    def _reason(self, one: Running, token: int) -> FinishReason | None:
        request = one.request
        assert isinstance(request.eos_token_id, tuple)
        if token in request.eos_token_id:
            return "end"
        if request.stop_when is not None and request.stop_when(one.ids):
            return "stop"
        if request.stop_strings:
            # Every token of a stop string has at least one of its bytes.
            longest = max(len(text.encode()) for text in request.stop_strings)
            tail = self._tokenizer.decode(one.ids[-longest - 1 :])
            if any(text in tail for text in request.stop_strings):
                return "stop"
        return "length" if len(one.ids) >= one.limit else None

    def _fail(self, one: Running, error: Exception) -> None:
        """End a request with an error. Its slot may hold NaN."""
        self._decoder.cache.clear(one.slot)
        self._scheduler.leave(one, keep=False)
        one.handle.fail(error)
