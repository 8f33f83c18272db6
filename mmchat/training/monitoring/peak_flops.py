"""Peak FLOP/s, the denominator of MFU: from the data sheet of a known GPU, else measured with matrix products."""

import time
from dataclasses import dataclass

import torch

from mmchat.errors import counted
from mmchat.training.distributed import collectives, process_group
from mmchat.training.monitoring.gpus import GPUS

MEASURED_SECONDS = 0.2
SLOW = 2.0
"""A CPU that multiplies so many times as fast in fp32 as in bf16 has no instructions for bf16."""
SIDE = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices that are multiplied, by device."""


@dataclass(frozen=True)
class Peak:
    """Peak of a run.

    Attributes:
        flops: FLOP/s of all ranks together.
        source: where the figure comes from, as text.
        hint: what makes the run faster, if its precision is slow here.
    """

    flops: float
    source: str
    hint: str | None = None


def find_peak_flops(precision: str, stated_tflops: float | None) -> Peak:
    """Peak FLOP/s of this run. All ranks call this together, because ranks on a CPU share its cores.

    Args:
        precision: "fp32" or "bf16".
        stated_tflops: the config's figure for one rank, in TFLOP/s.
    """
    ranks = process_group.world_size()
    if stated_tflops is not None:
        return Peak(stated_tflops * 1e12 * ranks, f"peak_tflops: {stated_tflops:g} x {counted(ranks, 'rank')}")
    if torch.cuda.is_available() and precision == "bf16":
        name = torch.cuda.get_device_name()
        if name in GPUS:
            return Peak(GPUS[name].flops * ranks, f"data sheet of {name}, dense bf16, x {counted(ranks, 'rank')}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # A CPU without instructions for bf16 is many times as fast in fp32, which bounds what a run there can reach.
    dtypes = {"bf16", "fp32"} if device == "cpu" and precision == "bf16" else {precision}
    rates = {}
    for dtype in sorted(dtypes):
        collectives.barrier()
        rate = matmul_rate(torch.device(device), torch.bfloat16 if dtype == "bf16" else torch.float32)
        rates[dtype] = collectives.all_reduce(torch.tensor(rate, dtype=torch.float64)).item()
    fastest, side = max(rates, key=rates.__getitem__), SIDE[device]
    source = f"{side} x {side} matrix products in {fastest}, measured at the start on {counted(ranks, 'rank')}"
    ratio = rates[fastest] / rates[precision]
    hint = f"this CPU multiplies {ratio:.0f} times as fast in fp32: set precision: fp32" if ratio > SLOW else None
    return Peak(rates[fastest], source, hint)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of this rank: the fastest matrix product within `MEASURED_SECONDS`."""
    side = SIDE[device.type]
    a = torch.linspace(-1, 1, side * side, device=device).view(side, side).to(dtype)
    fastest, end = float("inf"), time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - begin)
    return 2 * side**3 / fastest
