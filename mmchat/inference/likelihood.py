"""How probable given answers are, on the engine: for choices by likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor

from mmchat.errors import UserError
from mmchat.inference.engine import Request

if TYPE_CHECKING:
    from mmchat.inference.generator import Generator, ImageInput, Message

PROBES = ("A", "B")
"""Two answers whose common end is what the template writes after any answer."""


@dataclass(frozen=True)
class Likelihood:
    """Of one answer.

    Attributes:
        logprob: Natural logarithm of its probability, the sum over its tokens. The end of the turn does not count.
        tokens: Number of its tokens.
    """

    logprob: float
    tokens: int


def answer_likelihoods(
    generator: "Generator", messages: "Sequence[Message]", images: "Sequence[ImageInput]", answers: Sequence[str]
) -> list[Likelihood]:
    """The likelihood of each of several answers to a conversation.

    The engine is made to write each answer, and keeps the log probabilities that the model gave its tokens. What the
    prompts have in common is computed once.

    Args:
        generator: The model.
        messages: The conversation. The last message is the user's.
        images: Its images, in order.
        answers: The answers.

    Raises:
        UserError: As in `Generator.submit`, or an answer is empty or exceeds the context.
    """
    prompt = generator.prompt(messages, images)
    tokens = [_answer_ids(generator, answer) for answer in answers]
    handles = [
        generator.engine.submit(
            Request(prompt, len(ids), eos_token_id=(), processors=[_Dictate(ids)], top_logprobs=0, do_sample=False)
        )
        for ids in tokens
    ]
    found = []
    for answer, ids, handle in zip(answers, tokens, handles, strict=True):
        result = handle.result()
        if list(result.ids) != ids:
            raise UserError(f"the answer {answer!r:.80} has {len(ids)} tokens, which exceed the context of the model")
        found.append(Likelihood(sum(one.token for one in result.logprobs), len(ids)))
    return found


class _Dictate(LogitsProcessor):
    """Leaves one token possible, the next of an answer."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = iter(ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        only = torch.full_like(scores, -torch.inf)
        only[:, next(self._ids)] = 0
        return only


def _answer_ids(generator: "Generator", answer: str) -> list[int]:
    """The tokens of an answer as the template writes it, without the end of the turn."""
    if not answer.strip():
        raise UserError("an answer whose likelihood is asked for must not be empty")
    ends = [_turn_ids(generator, probe)[::-1] for probe in PROBES]
    end = next(length for length, (one, other) in enumerate(zip(*ends, strict=False)) if one != other)
    ids = _turn_ids(generator, answer)
    return ids[: len(ids) - end]


def _turn_ids(generator: "Generator", answer: str) -> list[int]:
    """What follows the prompt of a conversation of text with this answer."""
    question: dict[str, Any] = {"role": "user", "content": "?"}
    render = generator.processor.render
    prompt = render([question], add_generation_prompt=True).input_ids
    return render([question, {"role": "assistant", "content": answer}]).input_ids[len(prompt) :]
