"""What a tower is (`TowerConfig`, saved with the weights) and what it promises (`TowerSpec`). No torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from mmchat.errors import UserError
from mmchat.vision.tiling import Size, Tiling

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI CLIP's training statistics (openai/CLIP, clip/clip.py `_transform`)."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of ImageNet's training pictures (pytorch/examples, imagenet/main.py)."""
HALF = (0.5, 0.5, 0.5)
"""As mean and as deviation: bytes become -1 to 1 (SigLIP; big_vision, pp/ops_image.py `value_range`)."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of ImageNet's training pictures (torchvision's references)."""

Fit = Literal["squash", "pad", "shortest-edge-crop", "longest-edge-pad", "tiles"]
FITS: tuple[str, ...] = get_args(Fit)
RESAMPLINGS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocessing:
    """How a picture of any shape becomes the square that a tower sees, or the squares: each is a view.

    fit: squash          resize to the square, proportions lost (SigLIP)
         pad             pad to a square with the mean colour, then resize (LLaVA's `pad`)
         shortest-edge-crop   resize the short side, crop the centre (CLIP)
         longest-edge-pad     resize the long side; right and below, what is missing is 0 after normalising (SAM)
         tiles           cut into as many squares as `tiling` says of its size (InternVL); the only fit with a tiling
    crop_fraction: how much of the resized short side the crop keeps, where there is one (DINOv2: 224 of 256).
    """

    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resample: str = "bicubic"
    fit: str = "shortest-edge-crop"
    crop_fraction: float = 1.0
    tiling: Tiling | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.fit not in FITS:
            raise UserError(f"preprocessing fit {self.fit!r} is unknown; expected one of {', '.join(FITS)}")
        if self.resample not in RESAMPLINGS:
            known = ", ".join(RESAMPLINGS)
            raise UserError(f"preprocessing resample {self.resample!r} is unknown; expected one of {known}")
        if not 0 < self.crop_fraction <= 1:
            raise UserError(f"preprocessing crop_fraction is {self.crop_fraction}; expected more than 0 and at most 1")
        if isinstance(self.tiling, dict):
            object.__setattr__(self, "tiling", Tiling(**self.tiling))
        if self.fit == "tiles" and self.tiling is None:
            object.__setattr__(self, "tiling", Tiling())
        if self.fit != "tiles" and self.tiling is not None:
            raise UserError(f"preprocessing has a tiling, but its fit is {self.fit!r}; only fit 'tiles' takes one")


@dataclass(frozen=True)
class TowerSpec:
    """A tower's outside: pixels in, `tokens` features of width `dim` out.

    image_size and patch_size are in pixels; `tokens` is N of `patches: float[B, N, dim]`, features of one view.
    """

    image_size: int
    patch_size: int
    tokens: int
    dim: int
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def views(self, size: Size) -> int:
        """How many squares the tower sees of a picture of this size; each takes as many slots as any other.

        This is all that the number of a picture's slots hangs on, so planning, rendering and collation ask here.
        """
        tiling = self.preprocessing.tiling
        return 1 if tiling is None else tiling.views(size, self.image_size)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TowerSpec":
        return cls(**{**values, "preprocessing": Preprocessing(**values["preprocessing"])})


@dataclass(frozen=True)
class TowerConfig:
    """Everything needed to build a tower without its weights.

    family: key of `mmchat.vision.families.FAMILIES`.
    backbone: keyword arguments of the backbone's transformers config.
    layer: which hidden state is the feature, counted as transformers does: 0 is the embeddings, -1 the
        last block's output, -2 the one before (LLaVA, Vary). Several are laid side by side. Blocks above are not run.
    class_token: keep the class token among the features, in front.
    final_norm: what is taken goes through the norm after the last block, whichever layer it is (DINOv2).
    antialias: learned positions are antialiased when they are interpolated for another image size (open_clip, timm).
    """

    family: str
    backbone: dict[str, Any]
    layer: int | tuple[int, ...] = -1
    class_token: bool = False
    final_norm: bool = False
    antialias: bool = False
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        if not isinstance(self.layer, int):
            object.__setattr__(self, "layer", tuple(self.layer))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TowerConfig":
        values = dict(values)
        preprocessing = Preprocessing(**values.pop("preprocessing", {}))
        return cls(**values, preprocessing=preprocessing)


def refitted(tower: dict[str, Any], fit: Fit, tiling: Tiling | None = None) -> dict[str, Any]:
    """The `to_dict()` of a `TowerConfig` or `TowerSpec` with another way to the square.

    tiling: of fit "tiles"; None is the one that it has already, else InternVL's.
    """
    before = tower["preprocessing"]
    if fit == before["fit"] and tiling is None:
        return tower
    if fit == "tiles" and tiling is None:
        tiling = Tiling()
    return {**tower, "preprocessing": {**before, "fit": fit, "tiling": tiling and asdict(tiling)}}


def refuse_unequal_views(specs: Sequence[TowerSpec]) -> None:
    """Raises UserError where towers of one model would cut a picture into different views: slots are counted once."""
    ways = {spec.preprocessing.tiling and (spec.preprocessing.tiling, spec.image_size) for spec in specs}
    if len(ways) > 1:
        found = "; ".join(f"fit {s.preprocessing.fit} {s.preprocessing.tiling or ''} at {s.image_size}" for s in specs)
        raise UserError(
            f"all towers must see the same tiles of a picture, or all of them one square, found {found}; give them one "
            "fit, tiling and image size"
        )
