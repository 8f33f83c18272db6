"""The run configuration: one YAML file, composed here and nowhere else."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from mmchat.contrastive.config import ContrastiveConfig, SimCLRConfig
from mmchat.contrastive.prompts import PROMPTS, check_prompts
from mmchat.data.config import DataConfig
from mmchat.data.packing import PackingConfig
from mmchat.settings import settings
from mmchat.training.distributed.activation_checkpointing import Recomputed
from mmchat.training.monitoring.nan_guard import StabilityConfig
from mmchat.training.objectives.distillation import DistillationConfig
from mmchat.training.optim.trainable import Trainable
from mmchat.vision import Fit
from mmchat.vision.transforms.augmentation import AugmentationConfig

WEIGHTS = "float32"
"""Weights are trained in full precision, whatever they were written in; `precision: bf16` rounds inside the forward."""


@settings
class ValidationConfig(DataConfig):
    every: int = Field(200, gt=0, description="steps between two validations; the last step is always validated")

    @model_validator(mode="after")
    def _each_record_once(self) -> "ValidationConfig":
        if self.epoch_samples or any(s.repeat != 1 or s.weight for s in self.by_name().values()):
            raise ValueError("a validation reads every record once; leave out repeat, weight and epoch_samples")
        return self


@settings
class ZeroShotConfig:
    """Held-out images of classes that the run tells apart by words alone, while it goes."""

    path: str = Field(description="a folder for each class, or a table with an image and a label column")
    image_root: Path | None = Field(None, description="folder of a table's images; null: the table's own")
    labels_file: Path | None = Field(
        None, description="one label a line, or .json, what the data call a class: words for it; null: as they call it"
    )
    prompts: list[str] = Field(
        default_factory=lambda: list(PROMPTS), min_length=1, description="what is said of a label, {} in its place"
    )
    every: int = Field(200, gt=0, description="steps between two evaluations; the last step always has one")
    batch_size: int = Field(64, gt=0, description="images per rank and forward")

    @model_validator(mode="after")
    def _with_places(self) -> "ZeroShotConfig":
        check_prompts(self.prompts)
        return self


@settings
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), alone or beside Muon, with linear warmup."""

    name: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for matrices inside the networks, AdamW for the rest; ZeRO 0 only"
    )
    lr: float = Field(description="peak learning rate of modules that name none")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the moments' averages")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, description="of matrices; gains and biases are never decayed")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="after the warmup")
    warmup: float = Field(0.03, ge=0, description="share of the steps where below 1, else a number of steps")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="where the schedule ends, as a share of the peak")
    clip: float = Field(1.0, ge=0, description="largest norm of the whole gradient; 0 switches clipping off")


@settings
class CheckpointConfig:
    every: int = Field(500, gt=0, description="steps between two checkpoints; one is written at the end too")
    keep: int = Field(2, gt=0, description="newest checkpoints kept")
    asynchronous: bool = Field(
        False, description="write in the background while training goes on; needs memory for a copy"
    )


@settings
class RunConfig:
    run_dir: Path = Field(description="where everything of this run goes; must not hold another run")
    model: str = Field(description="model directory to start from (mmchat init), or a stage's model/")
    fit: Fit | None = Field(
        None, description="how images come to the towers, in training and ever after; null: the model's own"
    )
    objective: Literal["assistant", "contrastive", "simclr", "classify"] = Field(
        "assistant",
        description="assistant: next token of the answers; contrastive: images against captions; simclr: two views "
        "of each image against those of others, model may be any tower; classify: an image's label",
    )
    label_smoothing: float | None = Field(
        None, gt=0, lt=1, description="classify: share of a label's weight that all classes get alike; null: none"
    )
    distillation: DistillationConfig | None = Field(
        None, description="classify: learn from another classifier, too; null: from labels alone"
    )
    augmentation: AugmentationConfig | None = Field(
        None, description="classify: random views of training images; null: as they are, as held-out ones always are"
    )
    contrastive: ContrastiveConfig = Field(
        default_factory=ContrastiveConfig, description="what objective contrastive computes"
    )
    simclr: SimCLRConfig = Field(default_factory=SimCLRConfig, description="views, head and loss of objective simclr")
    data: DataConfig = Field(description="training records")
    validation: ValidationConfig | None = Field(None, description="held-out records; null: no validation")
    zero_shot: ZeroShotConfig | None = Field(
        None, description="of objective contrastive: labelled images to be told apart by words; null: none"
    )
    trainable: Trainable = Field(
        description="module -> frozen | full | lora, or {mode, lr, weight_decay} and, for lora, {rank, alpha, dropout, "
        "targets}"
    )
    optimizer: OptimizerConfig
    steps: int | None = Field(None, gt=0, description="optimizer steps; give this or epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the data; give this or steps")
    batch_size: int = Field(gt=0, description="samples per optimizer step, over all ranks and accumulation")
    micro_batch_size: int | None = Field(None, gt=0, description="samples per rank and forward; null: all at once")
    packing: PackingConfig | None = Field(
        None, description="how much one forward takes, without padding; null: pad. The steps hold the same samples"
    )
    feature_cache: Path | None = Field(
        None,
        description="folder where features of frozen towers are kept, computed once before the first step; null: the "
        "towers run in every step",
    )
    augment_towers: list[int] = Field(
        default_factory=list,
        description="numbers of the towers, from 0, to which images come a little changed in a step, by chance, as "
        "pages do to Vary's vocabulary",
    )
    precision: Literal["fp32", "bf16"] = Field("bf16", description="bf16: autocast; what is trained stays fp32")
    seed: int = Field(0, ge=0, description="of the order of samples and of dropout")
    on_bad_sample: Literal["stop", "skip"] = Field(
        "stop", description="skip: leave out, count and list in quarantine.jsonl"
    )
    workers: int = Field(1, ge=0, description="data workers per rank; 0 decodes in the training process")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="DeepSpeed ZeRO: what the ranks share out. 1: moments, 2: and gradients, 3: and weights"
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="to the CPU's memory. optimizer: moments and weights it steps on (ZeRO 1 to 3), all: ZeRO 3"
    )
    activation_checkpointing: dict[Literal["towers", "language_model", "text_encoder"], Recomputed] = Field(
        default_factory=dict,
        description="part -> what its blocks compute again in the backward rather than keep. all; selective: all but "
        "matrix products and attention. A list of parts means all",
    )
    patch_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of an image's patches that a contrastive run leaves out at random (FLIP)"
    )
    deepspeed: Path | None = Field(None, description="your own DeepSpeed JSON, laid over the derived one")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    stability: StabilityConfig = Field(default_factory=StabilityConfig)
    save_precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the weights in model/; bf16 is half as large and rounds what was trained"
    )
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list, description="where the metrics go besides metrics.jsonl: [tensorboard, wandb]"
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="TFLOP/s that a rank could reach, which MFU is a share of; null: known or measured"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the trained weights, written to model-ema/ as well"
    )
    resume: bool = Field(False, description="go on from the newest checkpoint in run_dir")
    overfit_one_batch: bool = Field(False, description="train on the first batch again and again: loss must fall to 0")

    @field_validator("activation_checkpointing", mode="before")
    @classmethod
    def _all_of_what_is_listed(cls, parts: Any) -> Any:
        return dict.fromkeys(parts, "all") if isinstance(parts, list) else parts

    @property
    def packs(self) -> bool:
        """Whether a forward has its samples one behind another, in a row."""
        return self.packing is not None and not self.packing.padded

    @model_validator(mode="after")
    def _bounded(self) -> "RunConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.optimizer.name == "muon" and self.zero_stage:
            raise ValueError("optimizer muon needs whole matrices, which ZeRO cuts up; set zero_stage to 0")
        needed = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(f"offload {self.offload} needs zero_stage {needed} or more, found {self.zero_stage}")
        absent = {"assistant": ["text_encoder"], "contrastive": ["language_model"]}
        for part in absent.get(self.objective, ["language_model", "text_encoder"]):
            if part in self.activation_checkpointing:
                raise ValueError(f"activation_checkpointing: objective {self.objective} has no {part}")
        if self.patch_dropout and self.objective == "assistant":
            raise ValueError("patch_dropout: an assistant's slots take all patches; it is for contrastive objectives")
        if self.objective != "classify" and (self.label_smoothing or self.distillation or self.augmentation):
            raise ValueError(
                f"label_smoothing, distillation and augmentation are for objective classify, found {self.objective}"
                + ("; views of simclr are simclr.augmentation" if self.objective == "simclr" else "")
            )
        if self.distillation is not None and self.zero_stage == 3:
            raise ValueError("distillation keeps its teacher whole on every rank: set zero_stage to 2 or less")
        if self.objective != "assistant" and any(rule.mode == "lora" for rule in self.trainable.values()):
            raise ValueError(f"trainable: lora is for objective assistant, but the objective is {self.objective}")
        if self.packing is not None and self.micro_batch_size is not None:
            raise ValueError("with packing, packing.tokens says how much a forward takes; leave out micro_batch_size")
        if self.packing is not None and self.objective != "assistant":
            raise ValueError(f"packing is for objective assistant, found {self.objective}")
        if self.feature_cache is not None and self.objective != "assistant":
            raise ValueError(f"feature_cache is for objective assistant, found {self.objective}")
        if self.feature_cache is not None and any(
            source.draft for data in (self.data, self.validation) if data for source in data.by_name().values()
        ):
            raise ValueError("feature_cache keeps features of whole images, decoded once: leave draft out")
        if self.augment_towers and self.objective != "assistant":
            raise ValueError(f"augment_towers is for objective assistant, found {self.objective}")
        if self.augment_towers and self.feature_cache is not None:
            raise ValueError("feature_cache keeps what towers make of unchanged images: leave augment_towers out")
        if self.zero_shot is not None and self.objective != "contrastive":
            raise ValueError(f"zero_shot is for objective contrastive, found {self.objective}")
        if self.objective != "assistant" and self.fit is not None:
            raise ValueError(f"fit is for objective assistant; with {self.objective} the tower's own config says it")
        return self


TRAJECTORY = (
    "model",
    "fit",
    "objective",
    "contrastive",
    "simclr",
    "label_smoothing",
    "distillation",
    "augmentation",
    "data",
    "augment_towers",
    "trainable",
    "optimizer",
    "steps",
    "epochs",
    "batch_size",
    "seed",
    "precision",
    "zero_stage",
    "ema",
)
"""Keys that must be the same when a run is resumed: with another value it would be another run, or, of the ZeRO stage,
its checkpoints could not be read."""


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain YAML/JSON values."""
    return TypeAdapter(RunConfig).dump_python(config, mode="json")
