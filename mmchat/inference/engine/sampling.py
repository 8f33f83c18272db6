"""The next token of each row: argmax for all greedy rows at once, transformers' processors for the others."""

from collections.abc import Sequence

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mmchat.errors import UserError
from mmchat.inference.engine.request import Request, TokenLogprobs


class Sampler:
    """Chooses the tokens of one request. Its generator is its own, so neighbours do not change what it draws.

    Processors and their order are those of `GenerationMixin._get_logits_processor`; with one row, the draw is that of
    `generate` after `torch.manual_seed(seed)`.

    Args:
        request: With all defaults filled in (`Request.with_defaults`).
        prompt_ids: Ids of the prompt.
        device: Of the logits.
    """

    def __init__(self, request: Request, prompt_ids: Sequence[int], device: torch.device) -> None:
        assert request.temperature is not None and request.top_k is not None and request.top_p is not None
        self.processors = LogitsProcessorList(request.processors)
        self.prompt = torch.tensor([*prompt_ids], device=device)
        self.generator: torch.Generator | None = None
        if request.repetition_penalty not in (None, 1.0):
            self.processors.append(RepetitionPenaltyLogitsProcessor(request.repetition_penalty))
        if not request.do_sample:
            return
        self.generator = torch.Generator(device)
        self.generator.seed() if request.seed is None else self.generator.manual_seed(request.seed)
        if request.temperature != 1.0:
            self.processors.append(TemperatureLogitsWarper(request.temperature))
        if request.top_k:
            self.processors.append(TopKLogitsWarper(request.top_k))
        if request.top_p < 1.0:
            self.processors.append(TopPLogitsWarper(request.top_p))

    @property
    def greedy(self) -> bool:
        """Whether the token is the argmax of the raw logits."""
        return self.generator is None and not self.processors

    def choose(self, logits: torch.Tensor, new_ids: Sequence[int]) -> int:
        """The next token.

        Args:
            logits: float[V].
            new_ids: Tokens after the prompt.
        """
        ids = torch.cat([self.prompt, torch.tensor([*new_ids], dtype=torch.long, device=self.prompt.device)])
        scores = self.processors(ids[None], logits[None].float())  # type: ignore[arg-type]  # says LongTensor
        if self.generator is None:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator))


def choose_tokens(
    logits: torch.Tensor, samplers: Sequence[Sampler | None], new_ids: Sequence[Sequence[int]]
) -> list[int | Exception]:
    """The next token of each row, or what went wrong in that row.

    Args:
        logits: float[B, V].
        samplers: One per row; None for rows that need none.
        new_ids: Tokens after the prompt, per row.

    Returns:
        A token or an error per row. Rows without a sampler have their argmax.
    """
    # Of bf16 on a CPU, max takes a fifth of the time of argmax, with the same index for ties.
    best = logits.max(dim=-1, keepdim=True).indices
    # NaN counts as the largest, so NaN anywhere in a row is seen here.
    broken = logits.gather(1, best)[:, 0].isnan().tolist()
    tokens: list[int | Exception] = [*best[:, 0].tolist()]
    for row, sampler in enumerate(samplers):
        if sampler is None:
            continue
        if broken[row]:
            tokens[row] = UserError(
                "the model computes NaN for this request: its weights are damaged, or overflow in this precision; copy "
                "the model again, or open it in float32"
            )
        elif not sampler.greedy:
            try:
                tokens[row] = sampler.choose(logits[row], new_ids[row])
            except Exception as error:
                tokens[row] = error
    return tokens


def token_logprobs(logits: torch.Tensor, token: int, top: int) -> TokenLogprobs:
    """Log probabilities of a token and of the `top` most probable ones.

    Args:
        logits: float[V], as the model gave them.
        token: The token.
        top: Number of tokens.
    """
    scores = logits.float().log_softmax(-1)
    best = scores.topk(top)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return TokenLogprobs(float(scores[token]), tuple(pairs))
