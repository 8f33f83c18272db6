"""Stream the text of a model that generates in another thread."""

from collections.abc import Callable, Iterator
from threading import Event, Thread

import torch
from transformers import TextIteratorStreamer


def stream_text(tokenizer, generate: Callable[[TextIteratorStreamer, Callable], object]) -> Iterator[str]:
    """Yield pieces of text as they are generated.

    Generation starts with the first piece. Closing the iterator stops it.

    Args:
        tokenizer: Decodes the tokens.
        generate: `generate(streamer, criterion)` runs the model with this streamer and stopping criterion. It is called
            in a thread; its errors are raised by the iterator.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failure: list[BaseException] = []
    closed = Event()

    def stop_if_closed(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full((len(ids),), closed.is_set(), device=ids.device)

    def work() -> None:
        try:
            generate(streamer, stop_if_closed)
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
        # Also reached when the caller closes the stream early: the model must not keep running.
        closed.set()
        thread.join()
    if failure:
        raise failure[0]
