"""The run configuration: one YAML file."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from mmchat.data.config import DataConfig
from mmchat.settings import settings
from mmchat.training.config.objectives import AssistantConfig, ObjectiveConfig, Part
from mmchat.training.optim.trainable import Trainable

WEIGHTS = "float32"
"""Weights are trained in full precision, whatever they were saved in; `precision: bf16` rounds inside the forward."""

Recomputed = Literal["all", "selective"]
"""What activation checkpointing computes again: a whole block, or all of it but matrix products and attention."""

ZeroStage = Literal[0, 1, 2, 3]


OptimizerName = Literal["adamw", "muon", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
PAGED_OPTIMIZERS = ("paged_adamw", "paged_adamw_8bit")
BITSANDBYTES_OPTIMIZERS = ("adamw_8bit", *PAGED_OPTIMIZERS)
EIGHT_BIT_OPTIMIZERS = ("adamw_8bit", "paged_adamw_8bit")


@settings
class ValidationConfig(DataConfig):
    max_length: int | None = Field(None, gt=0, description="as for data; null: data's")  # type: ignore[assignment]  # None
    every: int = Field(200, gt=0, description="steps between two validations; the last step is always validated")

    @model_validator(mode="after")
    def _each_record_once(self) -> "ValidationConfig":
        if self.epoch_samples or any(s.repeat != 1 or s.weight for s in self.by_name().values()):
            raise ValueError("a validation reads every record once; leave out repeat, weight and epoch_samples")
        return self


@settings
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), alone or together with Muon, with linear warmup."""

    name: OptimizerName = Field(
        "adamw",
        description="muon: Muon for matrices inside the networks, AdamW for the rest. adamw_8bit: moments in 8 bits; "
        "paged_adamw, paged_adamw_8bit: moments move to CPU memory when the GPU is full (extra `quantize`). All but "
        "adamw: ZeRO 0 only",
    )
    lr: float = Field(description="peak learning rate of modules without their own")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the moments' averages")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="of matrices; gains and biases are never decayed")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="after the warmup")
    warmup: float = Field(0.03, ge=0, description="below 1: share of the steps; else a number of steps")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="final learning rate as a share of the peak")
    clip: float = Field(1.0, ge=0, description="largest norm of the whole gradient; 0: no clipping")


@settings
class DistributedConfig:
    zero_stage: ZeroStage = Field(
        0, description="DeepSpeed ZeRO: what is sharded over ranks. 1: moments; 2: gradients, too; 3: weights, too"
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="to CPU memory. optimizer: moments and the weights it updates (ZeRO 1 to 3); all: ZeRO 3"
    )
    activation_checkpointing: dict[Part, Recomputed] = Field(
        default_factory=dict,
        description="part -> what its blocks compute again in the backward instead of keeping it. all; selective: all "
        "but matrix products and attention. A list of parts means all",
    )
    deepspeed: Path | None = Field(None, description="your own DeepSpeed JSON, merged over the derived one")

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _list_means_all(cls, parts: Any) -> Any:
        return dict.fromkeys(parts, "all") if isinstance(parts, list) else parts

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> "DistributedConfig":
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(f"offload {self.offload} needs zero_stage {needed} or more, found {self.zero_stage}")
        return self


@settings
class CheckpointConfig:
    every: int = Field(500, gt=0, description="steps between two checkpoints; one is written at the end, too")
    keep: int = Field(2, gt=0, description="newest checkpoints kept")
    asynchronous: bool = Field(
        False, description="write in the background while training continues; needs memory for a copy"
    )


@settings
class StabilityConfig:
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="loss or gradient not finite: stop, or skip the step (its samples count as consumed)"
    )
    spike_factor: float | None = Field(
        None, gt=1, description="loss or gradient norm above this many times the median of the last 50 steps is a spike"
    )
    on_spike: Literal["warn", "stop", "skip"] = Field("warn", description="warn: take the step and report it")


@settings
class MonitoringConfig:
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list, description="where metrics go besides metrics.jsonl: [tensorboard, wandb]"
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="peak TFLOP/s of a rank, of which MFU is a share; null: known or measured"
    )
    stability: StabilityConfig = Field(default_factory=StabilityConfig, description="NaN losses and spikes")


@settings
class RunConfig:
    run_dir: Path = Field(description="folder for everything this run writes; must not hold another run")
    model: str = Field(
        description="model to start from: directory (mmchat init, or a stage's model/) or user/name@revision on the hub"
    )
    objective: ObjectiveConfig = Field(
        default_factory=AssistantConfig, description="what is optimized: a kind, or {kind: ..., and keys of that kind}"
    )
    data: DataConfig = Field(description="training records")
    validation: ValidationConfig | None = Field(None, description="held-out records; null: no validation")
    trainable: Trainable = Field(
        description="module -> frozen | full | lora, or {mode, lr, weight_decay} and, for lora, {rank, alpha, dropout, "
        "targets, dora, rslora, lora_plus_ratio}"
    )
    optimizer: OptimizerConfig = Field(description="optimizer and learning rate")
    steps: int | None = Field(None, gt=0, description="optimizer steps; give this or epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the data; give this or steps")
    batch_size: int = Field(gt=0, description="samples per optimizer step, over all ranks and accumulation")
    micro_batch_size: int | None = Field(None, gt=0, description="samples per rank and forward; null: all at once")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="bf16: autocast; trained weights stay fp32")
    trained_weights: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16: trained weights of linear layers and convolutions, their gradients and moments are kept in "
        "bf16; updates are rounded stochastically. precision bf16, optimizer adamw and ZeRO 0 only",
    )
    quantize: Literal["nf4"] | None = Field(
        None,
        description="nf4: frozen linear layers of the language model are kept in 4 bits (QLoRA; extra `quantize`); "
        "adapter/ and model/ have the original weights. ZeRO 0 to 2",
    )
    fused_kernels: Literal["none", "liger"] = Field(
        "none", description="liger: Liger's kernels for norms and MLPs of the language model; CUDA only (extra `liger`)"
    )
    compile: list[Part] = Field(
        default_factory=list, description="parts whose blocks torch.compile compiles: [towers, language_model]"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the trained weights, written to model-ema/, too"
    )
    seed: int = Field(0, ge=0, description="of the order of samples and of dropout")
    on_bad_sample: Literal["stop", "skip"] = Field(
        "stop", description="skip: leave out, count and list in quarantine.jsonl"
    )
    workers: int = Field(1, ge=0, description="data workers per rank; 0 decodes in the training process")
    distributed: DistributedConfig = Field(default_factory=DistributedConfig, description="sharding and memory")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="what a run resumes from")
    monitoring: MonitoringConfig = Field(default_factory=MonitoringConfig, description="metrics and the NaN guard")
    save_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the weights in model/; bf16 is half as large and rounds the trained weights"
    )
    resume: bool = Field(False, description="resume from the newest checkpoint in run_dir")
    overfit_one_batch: bool = Field(False, description="train on the first batch only: the loss must fall to 0")

    @model_validator(mode="after")
    def _groups_agree(self) -> "RunConfig":
        objective, distributed = self.objective, self.distributed
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.optimizer.name == "muon" and distributed.zero_stage:
            raise ValueError("optimizer muon needs whole matrices, which ZeRO shards; set distributed.zero_stage to 0")
        named = {"distributed.activation_checkpointing": distributed.activation_checkpointing, "compile": self.compile}
        for key, parts in named.items():
            if unknown := [part for part in parts if part not in objective.parts]:
                raise ValueError(
                    f"{key}: objective {objective.kind} has no {unknown[0]}; its parts are: "
                    f"{', '.join(objective.parts)}"
                )
        if self.compile and distributed.zero_stage == 3:
            raise ValueError("compile: ZeRO 3 gathers weights inside blocks: set distributed.zero_stage to 2 or less")
        if self.fused_kernels != "none" and objective.kind != "assistant":
            raise ValueError(f"fused_kernels is for the language model of objective assistant, found {objective.kind}")
        if objective.distillation is not None and distributed.zero_stage == 3:
            raise ValueError(
                "distillation keeps a whole teacher on every rank: set distributed.zero_stage to 2 or less"
            )
        if not objective.takes_lora and any(rule.mode == "lora" for rule in self.trainable.values()):
            raise ValueError(f"trainable: lora is for objective assistant, but the objective is {objective.kind}")
        if distributed.zero_stage == 3 and any(rule.dora for rule in self.trainable.values()):
            raise ValueError(
                "trainable: dora computes norms of whole weights, which ZeRO 3 shards: set distributed.zero_stage to 2 "
                "or less"
            )
        if self.trained_weights == "bf16":
            self._bf16_weights_agree()
        if self.quantize is not None and objective.kind != "assistant":
            raise ValueError(f"quantize is for the language model of objective assistant, found {objective.kind}")
        if self.quantize is not None and distributed.zero_stage == 3:
            raise ValueError("quantize: 4-bit weights are not sharded: set distributed.zero_stage to 2 or less")
        if self.optimizer.name in BITSANDBYTES_OPTIMIZERS and distributed.zero_stage:
            raise ValueError(
                f"optimizer {self.optimizer.name} is for whole parameters, which ZeRO shards: set "
                "distributed.zero_stage to 0"
            )
        if objective.packing is not None and self.micro_batch_size is not None:
            raise ValueError("objective.packing.tokens already limits a forward; leave out micro_batch_size")
        if objective.feature_cache is not None and self._limits_images():
            raise ValueError(
                "objective.feature_cache holds features of whole images, decoded once: leave draft out, and max_pixels"
            )
        return self

    def _bf16_weights_agree(self) -> None:
        wrong = {
            "precision": (self.precision, "bf16"),
            "optimizer.name": (self.optimizer.name, "adamw"),
            "distributed.zero_stage": (self.distributed.zero_stage, 0),
            "ema": (self.ema, None),
        }
        for key, (found, needed) in wrong.items():
            if found != needed:
                expected = "null" if needed is None else needed
                raise ValueError(f"trained_weights: bf16 needs {key}: {expected}, found {found}")

    def _limits_images(self) -> bool:
        groups = [group for group in (self.data, self.validation) if group is not None]
        return any(source.draft or source.max_pixels for group in groups for source in group.by_name().values())


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain YAML/JSON values."""
    return TypeAdapter(RunConfig).dump_python(config, mode="json")
