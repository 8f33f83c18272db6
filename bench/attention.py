"""Compares torch's attention with ours (model/short_attention.py) on a CPU in bf16, by sequence length.

    python bench/attention.py
    OMP_NUM_THREADS=1 python bench/attention.py --heads 32 --groups 8 --width 128

Forward and backward of one causal sample, alternating. The ratio is the median, in CPU time, which other programs
disturb less. Errors are relative errors of the gradient of the queries against fp32.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional as F

from mmchat.model.short_attention import MAX_LENGTH, short_attention

LENGTHS = (64, 128, 257, 400, 600, 800, 1024, 1400, 2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--groups", type=int, default=12, help="key and value heads")
    parser.add_argument("--width", type=int, default=64, help="size of a head")
    parser.add_argument("--times", type=int, default=15)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s); ours is used up to {MAX_LENGTH} tokens")
    print(f"{'tokens':>7} {'torch ms':>9} {'ours ms':>8} {'ratio':>6} {'torch errs':>11} {'ours errs':>10}")
    for length in LENGTHS:
        states, gradient = draw(length, arguments.heads, arguments.groups, arguments.width)
        exact = query_gradient(
            torch_attention, [one.detach().float().requires_grad_() for one in states], gradient.float()
        )
        errors = [
            relative_error(query_gradient(attention, states, gradient), exact)
            for attention in (torch_attention, our_attention)
        ]
        pairs = [
            [1000 * seconds(attention, states, gradient) for attention in (torch_attention, our_attention)]
            for _ in range(arguments.times)
        ]
        torch_ms, our_ms = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(one / other for one, other in pairs)
        print(f"{length:7} {torch_ms:9.2f} {our_ms:8.2f} {ratio:6.2f} {errors[0]:11.4f} {errors[1]:10.4f}")


def draw(length: int, heads: int, groups: int, width: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Random queries, keys and values, and a gradient of the output."""
    torch.manual_seed(0)
    sizes = (heads, groups, groups, heads)
    *states, gradient = (torch.randn(1, length, size, width).bfloat16().transpose(1, 2) for size in sizes)
    return [one.requires_grad_() for one in states], gradient


def torch_attention(*states: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(*states, is_causal=True, enable_gqa=True)


def our_attention(*states: torch.Tensor) -> torch.Tensor:
    scale = states[0].shape[3] ** -0.5
    return short_attention(*states, [states[0].shape[2]], scale, causal=True).transpose(1, 2)


def query_gradient(attention: Callable, states: list[torch.Tensor], gradient: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(attention(*states), states, gradient)[0]


def seconds(attention: Callable, states: list[torch.Tensor], gradient: torch.Tensor) -> float:
    begun = time.process_time()
    query_gradient(attention, states, gradient)
    return (time.process_time() - begun) / torch.get_num_threads()


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found.float() - exact).norm() / exact.norm()).item()


if __name__ == "__main__":
    main()
