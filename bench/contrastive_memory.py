"""Memory of contrastive steps: SigLIP's sigmoid loss in chunks and with the full matrix, and gradient caching.

    python bench/contrastive_memory.py
    OMP_NUM_THREADS=1 python bench/contrastive_memory.py --batches 1024 2048

Each figure is what one forward and backward add to the peak resident set of a fresh process, in which glibc returns
large tensors to the kernel as soon as they are freed. The losses take float[B, 64]. The encoders are a ViT for images
of 64 pixels (64 patches, 4 blocks, hidden size 192) and a CLIP text transformer of the same size.
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
"""Pairs in one forward. With gradient caching a step has four times as many."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    arguments = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    print(f"{torch.get_num_threads()} thread(s)")
    print(f"{'batch':>6} {'full matrix, MiB':>18} {'in chunks, MiB':>15} {'loss, difference':>17}")
    for batch in arguments.batches:
        (full_mib, full_loss), (chunk_mib, chunk_loss) = (
            in_fresh_process(sigmoid_memory, variant, batch) for variant in ("full", "chunks")
        )
        print(f"{batch:6} {full_mib:18,.0f} {chunk_mib:15,.0f} {abs(full_loss - chunk_loss):17.1e}", flush=True)
    print(f"{'pairs':>6} {'in forwards of':>15} {'MiB':>7} {'loss':>10}")
    for pairs, size in ((FORWARD, FORWARD), (4 * FORWARD, 4 * FORWARD), (4 * FORWARD, FORWARD)):
        mib, loss = in_fresh_process(step_memory, pairs, size)
        print(f"{pairs:6} {size:15} {mib:7,.0f} {loss:10.6f}", flush=True)


def in_fresh_process(measure: Callable, *arguments: str | int) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def sigmoid_memory(variant: str, batch: int) -> tuple[float, float]:
    """MiB and loss of one forward and backward of the sigmoid loss."""

    def run(size: int) -> float:
        torch.manual_seed(0)
        images, texts = (F.normalize(torch.randn(size, 64), dim=1).requires_grad_() for _ in range(2))
        losses = (pairwise_sigmoid if variant == "chunks" else full_matrix_sigmoid)(images, texts, *SCALARS)
        losses.mean().backward()
        return losses.mean().item()

    return added_memory(run, batch, before=64)


def full_matrix_sigmoid(
    images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, logit_bias: torch.Tensor
) -> torch.Tensor:
    logits = logit_scale * images @ texts.T + logit_bias
    return -F.logsigmoid((2 * torch.eye(len(images)) - 1) * logits).sum(dim=1)


def step_memory(pairs: int, size: int) -> tuple[float, float]:
    """MiB and loss of a training step of `pairs` pairs in forwards of `size`."""
    torch.manual_seed(0)
    backbone = {**SIZES, "image_size": 64, "patch_size": 8, "projection_dim": 64}
    tower = {"family": "clip_vit", "backbone": backbone}
    text = {**SIZES, "vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2}
    model = DualEncoder(DualEncoderConfig([tower], text, 64)).train()

    def embed(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        images, texts, scale = model(*batch, torch.ones_like(batch[1]))
        return torch.stack([images, texts], dim=1), scale

    def loss_sum(embeddings: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return info_nce(*embeddings.unbind(dim=1), scale).sum()

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

    return added_memory(run, pairs, before=2)


def added_memory(run: Callable[[int], float], size: int, before: int) -> tuple[float, float]:
    """MiB that `run(size)` adds to the peak after a warm-up `run(before)`, and its result."""
    run(before)
    peak_before = high_water()
    value = run(size)
    return (high_water() - peak_before) / MIB, value


if __name__ == "__main__":
    main()
