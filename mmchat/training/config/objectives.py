"""What a run optimizes: a union of configs, told apart by `kind`. Each holds the keys of its kind and no others."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mmchat.contrastive.config import SimCLRConfig
from mmchat.contrastive.prompts import PROMPTS, check_prompts
from mmchat.data.packing import PackingConfig
from mmchat.settings import Shorthand, settings
from mmchat.vision import Fit
from mmchat.vision.transforms.augmentation import AugmentationConfig


@settings
class ZeroShotConfig:
    """Held-out images with labels, classified by prompts during the run."""

    path: str = Field(description="a folder per class, or a table with an image and a label column")
    image_root: Path | None = Field(None, description="folder of a table's images; null: the table's own")
    labels_file: Path | None = Field(
        None,
        description="words for the labels: one label per line, or .json {label: words}; null: the labels as they are",
    )
    prompts: list[str] = Field(
        default_factory=lambda: list(PROMPTS), min_length=1, description="templates; {} is replaced by a label's words"
    )
    every: int = Field(200, gt=0, description="steps between two evaluations; the last step is always evaluated")
    batch_size: int = Field(64, gt=0, description="images per rank and forward")

    @model_validator(mode="after")
    def _prompts_have_a_slot(self) -> "ZeroShotConfig":
        check_prompts(self.prompts)
        return self


@settings
class DistillationConfig:
    """Learn from the softened answers of another classifier (Hinton et al. 2015, arXiv:1503.02531)."""

    teacher: str = Field(description="model directory of a classifier with the same classes; it is not trained")
    temperature: float = Field(4.0, gt=0, description="both distributions are softened by it before they are compared")
    weight: float = Field(0.9, gt=0, le=1, description="weight of the teacher in the loss; 1: images need no labels")


Part = Literal["towers", "language_model", "text_encoder"]
"""A part of a model whose activations can be checkpointed."""


class _Kind:
    """What the rest of a run asks of any objective's config. A kind that has a key of this name overrides it."""

    parts: ClassVar[tuple[Part, ...]] = ("towers",)
    takes_lora: ClassVar[bool] = False
    is_assistant: ClassVar[bool] = False
    """Whether its model is an assistant: `mmchat init` makes it, and it has a processor."""
    takes_any_tower: ClassVar[bool] = False
    """Whether the run may start from any source of a tower, not only from a model directory."""
    use: ClassVar[str] = "mmchat vision inspect {model}"
    """A command that uses the model that a run has made."""
    replayable: ClassVar[bool] = False
    """Whether samples have losses of their own, independent of the others in the batch."""
    fit: Fit | None = None
    packing: PackingConfig | None = None
    feature_cache: Path | None = None
    patch_dropout: float = 0.0
    zero_shot: ZeroShotConfig | None = None
    distillation: DistillationConfig | None = None

    @property
    def packs(self) -> bool:
        """Whether the samples of a forward are concatenated in one row."""
        return False

    def with_packing(self, packing: PackingConfig | None) -> Self:
        """The same with another `packing`; only for a kind that has this key."""
        raise NotImplementedError


PATCH_DROPOUT = Field(0.0, ge=0, lt=1, description="share of an image's patches left out at random (FLIP)")


@settings
class AssistantConfig(_Kind):
    """Training of an assistant."""

    parts: ClassVar[tuple[Part, ...]] = ("towers", "language_model")
    takes_lora: ClassVar[bool] = True
    is_assistant: ClassVar[bool] = True
    use: ClassVar[str] = "mmchat chat {model} --image IMAGE"
    replayable: ClassVar[bool] = True

    kind: Literal["assistant"] = Field("assistant", description="next token of the answers")
    fit: Fit | None = Field(
        None, description="how images are fitted to the towers, in training and afterwards; null: as the model has it"
    )
    packing: PackingConfig | None = Field(
        None,
        description="size of a forward, whose samples are concatenated without padding; null: pad. A step holds the "
        "same samples either way",
    )
    feature_cache: Path | None = Field(
        None,
        description="folder for features of frozen towers, computed once before the first step; null: towers run in "
        "every step",
    )
    augment_towers: list[int] = Field(
        default_factory=list,
        description="indices of the towers, from 0, whose training images are sometimes changed slightly, as pages are "
        "for Vary's vocabulary",
    )

    @property
    def packs(self) -> bool:
        """Whether the samples of a forward are concatenated in one row."""
        return self.packing is not None and not self.packing.padded

    def with_packing(self, packing: PackingConfig | None) -> Self:
        """The same with another `packing`."""
        return replace(self, packing=packing)

    @model_validator(mode="after")
    def _cached_images_do_not_change(self) -> "AssistantConfig":
        if self.augment_towers and self.feature_cache is not None:
            raise ValueError("feature_cache holds features of unchanged images; leave augment_towers out")
        return self


@settings
class ContrastiveConfig(_Kind):
    """Training of a dual encoder, as CLIP and SigLIP are trained."""

    parts: ClassVar[tuple[Part, ...]] = ("towers", "text_encoder")
    use: ClassVar[str] = "mmchat clip classify {model} IMAGE --labels LABEL,LABEL"

    kind: Literal["contrastive"] = Field("contrastive", description="images against captions (CLIP, SigLIP)")
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="softmax: CLIP's InfoNCE; sigmoid: SigLIP's, for a model with a logit_bias"
    )
    random_crop: bool = Field(
        False, description="train on a random square of each image, as large as possible (CLIP's recipe)"
    )
    zero_shot: ZeroShotConfig | None = Field(
        None, description="labelled images to classify by prompts during the run; null: none"
    )
    patch_dropout: float = PATCH_DROPOUT


@settings
class SimCLRObjectiveConfig(SimCLRConfig, _Kind):
    """Training of a tower on images alone. The run's `model` may be any tower."""

    takes_any_tower: ClassVar[bool] = True

    kind: Literal["simclr"] = Field(
        "simclr", description="two views of each image against those of others; model may be any tower"
    )
    patch_dropout: float = PATCH_DROPOUT


@settings
class ClassifyConfig(_Kind):
    """Training of a classifier: a tower and a linear head."""

    kind: Literal["classify"] = Field("classify", description="an image's label")
    label_smoothing: float | None = Field(
        None, gt=0, lt=1, description="share of a label's weight that is spread over all classes; null: none"
    )
    distillation: DistillationConfig | None = Field(
        None, description="learn from another classifier as well; null: from labels only"
    )
    augmentation: AugmentationConfig | None = Field(
        None, description="random views of training images; null: unchanged, as held-out images always are"
    )
    patch_dropout: float = PATCH_DROPOUT


ObjectiveConfig = Annotated[
    AssistantConfig | ContrastiveConfig | SimCLRObjectiveConfig | ClassifyConfig,
    Field(discriminator="kind"),
    Shorthand("kind", default="assistant"),
]
