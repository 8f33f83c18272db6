"""GPUs by name: bf16 FLOP/s and memory, from data sheets. Imports no torch."""

from dataclasses import dataclass

from mmchat.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One model of GPU.

    Attributes:
        short: its name in `mmchat plan --gpu`.
        flops: dense bf16 FLOP/s.
        memory: bytes, as its driver reports.
    """

    short: str
    flops: float
    memory: int


GPUS = {
    "NVIDIA A100-PCIE-40GB": Gpu("A100-PCIE-40GB", 312e12, 40_960 << 20),
    "NVIDIA A100 80GB PCIe": Gpu("A100-PCIE-80GB", 312e12, 81_920 << 20),
    "NVIDIA A100-SXM4-40GB": Gpu("A100-40GB", 312e12, 40_960 << 20),
    "NVIDIA A100-SXM4-80GB": Gpu("A100-80GB", 312e12, 81_920 << 20),
    "NVIDIA H100 PCIe": Gpu("H100-PCIE", 756e12, 81_559 << 20),
    "NVIDIA H100 NVL": Gpu("H100-NVL", 835e12, 95_830 << 20),
    "NVIDIA H100 80GB HBM3": Gpu("H100-80GB", 989e12, 81_559 << 20),
    "NVIDIA H200": Gpu("H200", 989e12, 143_771 << 20),
    "NVIDIA B200": Gpu("B200", 2250e12, 183_359 << 20),
    "NVIDIA L40S": Gpu("L40S", 362e12, 46_068 << 20),
    "NVIDIA GeForce RTX 4090": Gpu("RTX-4090", 165e12, 24_564 << 20),
}
"""By the exact name that torch reports; a MIG partition has another name and less of both. FLOP/s: bf16 matrix products
without sparsity, from NVIDIA's data sheets (RTX 4090: the Ada white paper). Memory: as listed by `nvidia-smi`."""


def find_gpu(name: str) -> Gpu:
    """A GPU by its short name or by the name that torch reports.

    Raises:
        UserError: the GPU is not in the table.
    """
    known = {gpu.short.lower(): gpu for gpu in GPUS.values()} | {full.lower(): gpu for full, gpu in GPUS.items()}
    key = name.lower().replace(" ", "-") if name.lower() not in known else name.lower()
    if key not in known:
        names = ", ".join(gpu.short for gpu in GPUS.values())
        raise UserError(
            f"--gpu {name}: not in the table; there are {names}. For another give --gpu-memory GIB, and "
            "--monitoring.peak_tflops for its time"
        )
    return known[key]
