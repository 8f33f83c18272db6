"""Gradient caching (Gao et al. 2021, arXiv:2101.06983): a loss over a whole step, in the memory of one micro-batch.

A contrastive loss compares all samples of a step, so it is not the sum of the losses of its micro-batches. But it
depends on a micro-batch only through its embeddings. Once the gradients of the embeddings are known, each micro-batch
can run forward and backward alone.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from mmchat.data.collate import Batch
from mmchat.training.checkpoints.rng_state import restore_rng_state, rng_state

Embed = Callable[[Batch], tuple[torch.Tensor, ...]]
"""Batch -> embeddings float[n, ...], and scalars that all batches share (a temperature)."""


def losses_by_cache(
    embed: Embed, loss_sum: Callable[..., torch.Tensor], batches: Sequence[Batch]
) -> Iterator[torch.Tensor]:
    """One loss per micro-batch, whose gradients add up to those of `loss_sum(embeddings of all, *scalars)`.

    The first has the value of the whole loss, the others are zero. Losses are yielded one at a time; run backward
    before asking for the next. Without gradients only the whole loss is yielded. The second forward of a micro-batch
    repeats the dropout of the first.

    Args:
        embed: embeddings and scalars of a micro-batch.
        loss_sum: of the embeddings float[N, ...] of all micro-batches and of the scalars.
    """
    states, outputs = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(rng_state())
            outputs.append(embed(batch))
    embeddings = torch.cat([parts[0] for parts in outputs])
    if not torch.is_grad_enabled():
        yield loss_sum(embeddings, *outputs[0][1:])
        return
    leaves = [leaf.detach().requires_grad_() for leaf in (embeddings, *outputs[0][1:])]
    loss = loss_sum(*leaves)
    gradients = torch.autograd.grad(loss, leaves)
    value, sizes = loss.detach(), [len(parts[0]) for parts in outputs]
    for number, (batch, state) in enumerate(zip(batches, states, strict=True)):
        restore_rng_state(state)
        embedding_gradient = gradients[0].split(sizes)[number]
        # The first micro-batch carries the whole gradient of the shared scalars.
        scalar_gradients = [gradient * (number == 0) for gradient in gradients[1:]]
        pairs = zip(embed(batch), (embedding_gradient, *scalar_gradients), strict=True)
        carrier = sum((output * gradient).sum() for output, gradient in pairs)
        yield carrier - carrier.detach() + value * (number == 0)
