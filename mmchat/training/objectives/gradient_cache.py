"""Gradient caching (Gao et al. 2021, arXiv:2101.06983): a loss over a whole step, in the memory of one micro-batch.

A contrastive loss compares everything with everything, so the losses of micro-batches do not add up to it. But all that
a loss sees of a micro-batch are its embeddings: once their gradients are known, each micro-batch can have its forward
and backward alone.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from mmchat.data.collate import Batch
from mmchat.training.checkpoints.rng_state import restore_rng_state, rng_state

Embed = Callable[[Batch], tuple[torch.Tensor, ...]]
"""Embeddings float[n, ...] of a batch, and scalars that are the same for all batches (a temperature)."""


def losses_by_cache(
    embed: Embed, loss_sum: Callable[..., torch.Tensor], batches: Sequence[Batch]
) -> Iterator[torch.Tensor]:
    """Per micro-batch something whose gradients add up to those of `loss_sum(embeddings of all, *scalars)`.

    Its value is in the first, the others are zero. Each is to have its backward before the next is asked for. Where no
    gradient is wanted the loss comes alone. Dropout drops in the second forward what it dropped in the first.
    """
    states, seen = [], []
    with torch.no_grad():
        for batch in batches:
            states.append(rng_state())
            seen.append(embed(batch))
    embeddings = torch.cat([parts[0] for parts in seen])
    if not torch.is_grad_enabled():
        yield loss_sum(embeddings, *seen[0][1:])
        return
    leaves = [leaf.detach().requires_grad_() for leaf in (embeddings, *seen[0][1:])]
    loss = loss_sum(*leaves)
    gradients = torch.autograd.grad(loss, leaves)
    value, sizes = loss.detach(), [len(parts[0]) for parts in seen]
    for number, (batch, state) in enumerate(zip(batches, states, strict=True)):
        restore_rng_state(state)
        own = gradients[0].split(sizes)[number]
        # What all micro-batches share has its whole gradient from the first.
        shared = [gradient * (number == 0) for gradient in gradients[1:]]
        again = embed(batch)
        carrier = sum((part * gradient).sum() for part, gradient in zip(again, (own, *shared), strict=True))
        yield carrier - carrier.detach() + value * (number == 0)
