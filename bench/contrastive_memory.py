"""Memory of contrastive steps: SigLIP's sigmoid in chunks and with its whole matrix, and gradient caching.

    python bench/contrastive_memory.py
    OMP_NUM_THREADS=1 python bench/contrastive_memory.py --batches 1024 2048

Each figure is what one forward and backward add to the largest resident set of a fresh process, in which glibc gives
large tensors back as soon as they are freed. The losses are those of float[B, 64]; the encoders are a ViT of 64 pixels
(64 patches, 4 blocks, width 192) and CLIP's text transformer likewise.
"""

import argparse
import multiprocessing
import os
from collections.abc import Callable

import torch
from side_by_side.recorder import high_water
from torch.nn import functional as F

from mmchat.contrastive import DualEncoder, DualEncoderConfig, info_nce, pairwise_sigmoid
from mmchat.training.objectives.gradient_cache import losses_by_cache

MIB = 2**20
SCALARS = torch.tensor([10.0]), torch.tensor([-10.0])
SIZES = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3}
FORWARD = 32
"""Pairs of one forward, beside which caching has four times as many in a step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    asked = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    print(f"{torch.get_num_threads()} thread(s)")
    print(f"{'batch':>6} {'whole matrix, MiB':>18} {'in chunks, MiB':>15} {'loss, difference':>17}")
    for batch in asked.batches:
        (whole, value), (chunks, same) = (in_fresh_process(sigmoid, way, batch) for way in ("whole", "chunks"))
        print(f"{batch:6} {whole:18,.0f} {chunks:15,.0f} {abs(value - same):17.1e}", flush=True)
    print(f"{'pairs':>6} {'in forwards of':>15} {'MiB':>7} {'loss':>10}")
    for pairs, size in ((FORWARD, FORWARD), (4 * FORWARD, 4 * FORWARD), (4 * FORWARD, FORWARD)):
        mib, loss = in_fresh_process(step, pairs, size)
        print(f"{pairs:6} {size:15} {mib:7,.0f} {loss:10.6f}", flush=True)


def in_fresh_process(measure: Callable, *words: str | int) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, words)


def sigmoid(way: str, batch: int) -> tuple[float, float]:
    """MiB, and the loss."""

    def run(size: int) -> float:
        torch.manual_seed(0)
        images, texts = (F.normalize(torch.randn(size, 64), dim=1).requires_grad_() for _ in range(2))
        losses = (pairwise_sigmoid if way == "chunks" else whole_matrix)(images, texts, *SCALARS)
        losses.mean().backward()
        return losses.mean().item()

    return added(run, batch, before=64)


def whole_matrix(
    images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, logit_bias: torch.Tensor
) -> torch.Tensor:
    logits = logit_scale * images @ texts.T + logit_bias
    return -F.logsigmoid((2 * torch.eye(len(images)) - 1) * logits).sum(dim=1)


def step(pairs: int, size: int) -> tuple[float, float]:
    """MiB and loss of a step of so many pairs in forwards of `size`."""
    torch.manual_seed(0)
    backbone = {**SIZES, "image_size": 64, "patch_size": 8, "projection_dim": 64}
    tower = {"family": "clip_vit", "backbone": backbone}
    text = {**SIZES, "vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2}
    model = DualEncoder(DualEncoderConfig([tower], text, 64)).train()

    def embed(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        images, texts, scale = model(*batch, torch.ones_like(batch[1]))
        return torch.stack([images, texts], dim=1), scale

    def loss_sum(both: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return info_nce(*both.unbind(dim=1), scale).sum()

    def run(count: int) -> float:
        torch.manual_seed(1)
        data = torch.randn(count, 3, 64, 64), torch.randint(3, 1000, (count, 32))
        batches = list(zip(*(part.split(size) for part in data), strict=True))
        losses = losses_by_cache(embed, loss_sum, batches) if len(batches) > 1 else [loss_sum(*embed(batches[0]))]
        total = 0.0
        for loss in losses:
            (loss / count).backward()
            total += loss.item() / count
        return total

    return added(run, pairs, before=2)


def added(run: Callable[[int], float], size: int, before: int) -> tuple[float, float]:
    """MiB that `run(size)` adds to a process that has run a small one, and what it gives."""
    run(before)
    highest = high_water()
    value = run(size)
    return (high_water() - highest) / MIB, value


if __name__ == "__main__":
    main()
