"""Memory of one rank: model states as DeepSpeed 0.19.8 allocates them, activations as measured.

Model states follow its source (`runtime/zero/stage_1_and_2.py`, `stage3.py`) for weights that are trained in fp32. Of T
trained and F frozen elements on R ranks, in bytes:

    ZeRO   parameters      gradients   optimizer (AdamW)           buckets, and what is gathered
    0      4T + 4F *       4T          8T                          -
    1      4T + 4F *       4T          12T/R: its own fp32 copy    4 x reduce_bucket_size for each type of gradients
    2      4T + 4F *       4T/R        12T/R                       the same
    3      4(T + F)/R      4T/R        12T/R                       a bucket of each type; 4 x what may be gathered

* Two bytes less per frozen element that is kept in bf16 (`training.optim.frozen_weights`), and the packed weight and
scales of a 4-bit layer (`training.optim.nf4`) instead of four bytes. ZeRO's own fp32 copy exists although the weights
are fp32 already. Moments in 8 bits take 2 + 8/256 bytes instead of 8; paged ones are counted as if all were on the GPU.
With `trained_weights: bf16` the four bytes of a weight that autocast rounds, its gradient and each moment are two.
Types of gradients are bf16 (linear layers and convolutions under autocast) and fp32. A teacher (distillation) is kept
in fp32, whole on every rank. The total assumes that all parts peak together.
"""

from dataclasses import dataclass

from torch import nn

from mmchat.planning.activations import Activations
from mmchat.training.config import EIGHT_BIT_OPTIMIZERS, OptimizerConfig, RunConfig
from mmchat.training.deepspeed_internals import LOWER_PRECISION_SAFE_MODULES, DeepSpeedZeroConfig
from mmchat.training.distributed.deepspeed_config import deepspeed_config
from mmchat.training.objectives.base import Objective
from mmchat.training.optim.nf4 import scale_bytes
from mmchat.training.optim.optimizer import hidden_matrices, small_moments
from mmchat.training.optim.param_groups import ModuleGroup

CUDA_CONTEXT = 1 << 30
"""What a CUDA process needs before its first tensor (context, cuBLAS, NCCL): 0.5 to 1 GiB, by experience."""

SMALLEST_IN_8_BITS, BLOCK_OF_MOMENTS = 4096, 256
"""bitsandbytes keeps the moments of smaller parameters in fp32, and one fp32 scale per moment for so many elements
(optim/optimizer.py, Optimizer2State)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on a rank's device; `on_cpu`: bytes that `offload` keeps in CPU memory instead."""

    zero_stage: int
    parameters: int
    gradients: int
    optimizer: int
    buckets: int
    gathered: int
    average: int
    teacher: int
    activations: Activations
    on_cpu: int

    @property
    def total(self) -> int:
        states = self.parameters + self.gradients + self.optimizer + self.average + self.teacher
        return states + self.buckets + self.gathered + self.activations.total


def bytes_of(parameter: nn.Parameter) -> int:
    """Size of a parameter as it is kept during the run."""
    return parameter.numel() * parameter.element_size()


def plan_memory(
    config: RunConfig,
    objective: Objective,
    groups: list[ModuleGroup],
    stage: int,
    ranks: int,
    activations: Activations,
) -> Memory:
    """Memory of the configured run, but at ZeRO stage `stage`, with as much offload as that stage supports."""
    model, teacher = objective.model, objective.teacher
    zero = zero_settings(config, stage, ranks)
    trained = [parameter for group in groups for parameter in group.trained.values()]
    frozen = [parameter for group in groups for parameter in group.frozen.values()]
    weights, held = sum(map(bytes_of, trained)), sum(map(bytes_of, [*trained, *frozen])) + scale_bytes(model)

    def shard(total: int) -> int:
        return -(-total // ranks)

    moments = moments_bytes(config.optimizer, model, trained)
    parts = {
        "parameters": shard(held) if stage == 3 else held,
        "gradients": shard(weights) if stage >= 2 else weights,
        "optimizer": shard(moments + weights) if stage else moments,
        "buckets": _buckets(config.precision, model, trained, zero, stage),
        "gathered": min(held, 4 * zero.max_live_parameters) if stage == 3 else 0,
        "average": shard(weights) if config.ema else 0,
        "teacher": sum(map(bytes_of, teacher.parameters())) if teacher is not None else 0,
    }
    moved = _moved(config.distributed.offload, stage)
    on_cpu = sum(parts[name] for name in moved)
    if moved:
        # Under ZeRO 1 a share of the gradients is there, too, and below ZeRO 3 a copy of the updated weights.
        on_cpu += {1: 2, 2: 1, 3: 0}[stage] * shard(weights)
    here = {name: 0 if name in moved else size for name, size in parts.items()}
    return Memory(stage, **here, activations=activations, on_cpu=on_cpu)


def _moved(offload: str, stage: int) -> list[str]:
    """What is kept in CPU memory: as configured, as far as this stage supports it."""
    if offload == "none" or not stage:
        return []
    moved = ["optimizer"] + (["gradients"] if stage >= 2 else [])
    return moved + (["parameters"] if offload == "all" and stage == 3 else [])


def zero_settings(config: RunConfig, stage: int, ranks: int) -> DeepSpeedZeroConfig:
    """DeepSpeed's ZeRO settings of this run at this stage, defaults included."""
    stated = deepspeed_config(config, ranks)["zero_optimization"]
    settings = {key: value for key, value in stated.items() if not key.startswith("offload")}
    return DeepSpeedZeroConfig(**{**settings, "stage": stage})


def moments_bytes(optimizer: OptimizerConfig, model: nn.Module, trained: list[nn.Parameter]) -> int:
    """Bytes of moments: two per element for AdamW, one for Muon, as wide as the weight; in 8 bits two, and scales."""
    with_muon = hidden_matrices(model) if optimizer.name == "muon" else set()
    in_8_bits = small_moments(model, optimizer, trained) if optimizer.name in EIGHT_BIT_OPTIMIZERS else set()

    def of(parameter: nn.Parameter) -> int:
        count = parameter.numel()
        if id(parameter) in in_8_bits and count >= SMALLEST_IN_8_BITS:
            return 2 * count + 2 * 4 * -(-count // BLOCK_OF_MOMENTS)
        return parameter.element_size() * count * (1 if id(parameter) in with_muon else 2)

    return sum(map(of, trained))


def _buckets(
    precision: str, model: nn.Module, trained: list[nn.Parameter], zero: DeepSpeedZeroConfig, stage: int
) -> int:
    """ZeRO 1 and 2 allocate fp32 buckets for any type of gradient, two with overlap_comm; ZeRO 3 one of each type."""
    if not stage:
        return 0
    rounded = {
        id(p) for m in model.modules() if type(m) in LOWER_PRECISION_SAFE_MODULES for p in m.parameters(recurse=False)
    }
    types = {2 if precision == "bf16" and id(parameter) in rounded else 4 for parameter in trained}
    if stage == 3:
        return sum(zero.reduce_bucket_size * size for size in types)
    return 4 * zero.reduce_bucket_size * len(types) * (2 if zero.overlap_comm else 1)
