"""What a tower is (`TowerConfig`, saved with the weights) and what it promises (`TowerSpec`). No torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from mmchat.errors import UserError
from mmchat.vision.transforms.native_aspect import native_size
from mmchat.vision.transforms.tiling import Size, Tiling

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI CLIP's training statistics (openai/CLIP, clip/clip.py `_transform`)."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of ImageNet's training images (pytorch/examples, imagenet/main.py)."""
HALF = (0.5, 0.5, 0.5)
"""As mean and as deviation: bytes become -1 to 1 (SigLIP; big_vision, pp/ops_image.py `value_range`)."""

Fit = Literal["squash", "pad", "shortest-edge-crop", "longest-edge-pad", "tiles", "native"]
FITS: tuple[str, ...] = get_args(Fit)
RESAMPLINGS = ("bilinear", "bicubic")

Grid = tuple[int, int]
"""Rows and columns of the patches that an image of native aspect has."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any shape becomes the square that a tower sees, or the squares: each is a view. Of native aspect
    it stays of its shape, and each of its patches is one.

    fit: squash          resize to the square, proportions lost (SigLIP)
         pad             pad to a square with the mean colour, then resize (LLaVA's `pad`)
         shortest-edge-crop   resize the short side, crop the centre (CLIP)
         longest-edge-pad     resize the long side; right and below, what is missing is 0 after normalising (SAM)
         tiles           cut into as many squares as `tiling` says of its size (InternVL); the only fit with a tiling
         native          resize, proportions kept up to a patch, to nearly `max_patches` patches (SigLIP 2); the only
                         fit that has them, and None leaves them to the tower: as many as it learned positions
    crop_fraction: how much of the resized short side the crop keeps, where there is one (DINOv2: 224 of 256).
    """

    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resample: str = "bicubic"
    fit: str = "shortest-edge-crop"
    crop_fraction: float = 1.0
    tiling: Tiling | None = None
    max_patches: int | None = None

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
        if self.fit != "native" and self.max_patches is not None:
            raise UserError(f"preprocessing has max_patches, but its fit is {self.fit!r}; only fit 'native' takes them")
        if self.max_patches is not None and self.max_patches < 1:
            raise UserError(f"preprocessing max_patches is {self.max_patches}; expected 1 or more")


@dataclass(frozen=True)
class TowerSpec:
    """A tower's outside: pixels in, `tokens` features of width `dim` out.

    image_size and patch_size are in pixels; `tokens` is N of `patches: float[B, N, dim]`, features of one view. Where
    the aspect is native, image_size is the side of the square that positions were learned on.
    """

    image_size: int
    patch_size: int
    tokens: int
    dim: int
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    @property
    def native(self) -> bool:
        """Whether a view is a patch, and images need a grid."""
        return self.preprocessing.fit == "native"

    @property
    def view_size(self) -> int:
        """Side of a view in pixels."""
        return self.patch_size if self.native else self.image_size

    def grid(self, size: Size) -> Grid | None:
        """Of an image of this size; None where views are squares."""
        if not self.native:
            return None
        width, height = native_size(*size, self.patch_size, self.preprocessing.max_patches)
        return height // self.patch_size, width // self.patch_size

    def views(self, size: Size) -> int:
        """How many views the tower has of an image of this size; each takes as many slots as any other.

        This is all that the number of an image's slots hangs on, so planning, rendering and collation ask here.
        """
        if grid := self.grid(size):
            return grid[0] * grid[1]
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


def with_fit(
    config: TowerConfig, fit: Fit, tiling: Tiling | None = None, max_patches: int | None = None
) -> TowerConfig:
    """With another way to the square, or another fit of its own.

    tiling: of fit "tiles"; None is the one that it has already, else InternVL's. max_patches: of fit "native"; None
    are those that it has already, else as many as the tower learned positions.
    """
    before = config.preprocessing
    if fit == before.fit and tiling is None and max_patches is None:
        return config
    return replace(config, preprocessing=replace(before, fit=fit, tiling=tiling, max_patches=max_patches))


def refuse_several_views(spec: TowerSpec, what: str) -> None:
    """Raises UserError unless the tower sees one square of each image; `what` needs that."""
    if (fit := spec.preprocessing.fit) in ("tiles", "native"):
        raise UserError(f"{what} takes one square of each image, but the tower's fit is {fit!r}; give it another")


def refuse_unequal_views(specs: Sequence[TowerSpec]) -> None:
    """Raises UserError where towers of one model would cut an image into different views: slots are counted once."""
    if len(specs) > 1 and any(spec.native for spec in specs):
        raise UserError(
            f"a tower of fit native must be the only one, found {', '.join(spec.preprocessing.fit for spec in specs)}: "
            "its patches are no other tower's; give all of them one fit that makes squares (--fit)"
        )
    ways = {spec.preprocessing.tiling and (spec.preprocessing.tiling, spec.image_size) for spec in specs}
    if len(ways) > 1:
        found = "; ".join(f"fit {s.preprocessing.fit} {s.preprocessing.tiling or ''} at {s.image_size}" for s in specs)
        raise UserError(
            f"all towers must see the same tiles of an image, or all of them one square, found {found}; give them one "
            "fit, tiling and image size"
        )
