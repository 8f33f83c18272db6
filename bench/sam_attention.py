"""Attention of SAM ViT-B for one image of 1024 pixels: transformers' (sdpa) and ours (vision/sam_attention.py).

    python bench/sam_attention.py
    OMP_NUM_THREADS=1 python bench/sam_attention.py --times 7

A windowed block (25 windows of 14 x 14 patches) and a global one (64 x 64), with and without a backward, alternating.
Medians of CPU time, which other programs disturb less. Memory is what one call adds to the peak of a fresh process.
"""

import argparse
import multiprocessing
import time
from itertools import product
from statistics import median

import torch
from side_by_side.recorder import high_water
from torch import nn
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionSdpaAttention

from mmchat.vision.sam_attention import DecomposedAttention

IMPLEMENTATIONS = (SamVisionSdpaAttention, DecomposedAttention)
SHAPES = {"windows": (25, 14, 14, 768), "global": (1, 64, 64, 768)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s)")
    print(f"{'':16} {'':>8} {'theirs':>17} {'ours':>17}")
    print(f"{'block':>8} {'type':>7} {'backward':>8} {'s':>9} {'MiB':>7} {'s':>9} {'MiB':>7}")
    fresh = multiprocessing.get_context("spawn")
    for block, bf16, backward in product(SHAPES, (False, True), (False, True)):
        modules = [draw(implementation, block) for implementation in IMPLEMENTATIONS]
        rounds = [[seconds(attention, block, bf16, backward) for attention in modules] for _ in range(arguments.times)]
        theirs, ours = (median(column) for column in zip(*rounds, strict=True))
        peaks = []
        for implementation in IMPLEMENTATIONS:
            with fresh.Pool(1) as pool:
                peaks.append(pool.apply(peak_mib, (implementation, block, bf16, backward)))
        kind = "bf16" if bf16 else "fp32"
        figures = f"{theirs:9.2f} {peaks[0]:7,} {ours:9.2f} {peaks[1]:7,}"
        print(f"{block:>8} {kind:>7} {backward!s:>8} {figures}", flush=True)


def draw(implementation: type[SamVisionAttention], block: str) -> SamVisionAttention:
    torch.manual_seed(0)
    attention = implementation(SamVisionConfig(), SHAPES[block][1])
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.05)
    return attention


def seconds(attention: SamVisionAttention, block: str, bf16: bool, backward: bool) -> float:
    hidden = torch.randn(SHAPES[block], requires_grad=backward)
    begun = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.set_grad_enabled(backward):
        output, _ = attention(hidden)
    if backward:
        output.float().square().sum().backward()
    return (time.process_time() - begun) / torch.get_num_threads()


def peak_mib(implementation: type[SamVisionAttention], block: str, bf16: bool, backward: bool) -> int:
    attention = draw(implementation, block)
    before = high_water()
    seconds(attention, block, bf16, backward)
    return (high_water() - before) >> 20


if __name__ == "__main__":
    main()
