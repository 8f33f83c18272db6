"""`TowerConfig`, which is saved with a tower's weights, and `TowerSpec`, which describes its input and output. No
torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, Literal, get_args

from mmchat.errors import UserError
from mmchat.vision.layout import ImageLayout, views_only
from mmchat.vision.transforms.anyres import AnyRes
from mmchat.vision.transforms.native_aspect import native_size
from mmchat.vision.transforms.split import Split
from mmchat.vision.transforms.tiling import Size, Tiling, check_range

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Statistics of OpenAI CLIP's training images (openai/CLIP, clip/clip.py `_transform`)."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Statistics of ImageNet's training images (pytorch/examples, imagenet/main.py)."""
HALF = (0.5, 0.5, 0.5)
"""As mean and standard deviation: bytes become -1 to 1 (SigLIP; big_vision, pp/ops_image.py `value_range`)."""

Fit = Literal["squash", "pad", "shortest-edge-crop", "longest-edge-pad", "tiles", "anyres", "split", "native"]
LEAST_CROP = 1 / 16
"""Smallest part of a resized image's short side that a crop keeps. The image is resized to that much more."""
MOST_PATCHES = 2**16
"""Most patches of an image of native aspect ratio."""
FITS: tuple[str, ...] = get_args(Fit)
RESAMPLINGS = ("bilinear", "bicubic", "lanczos")
TILINGS: dict[str, type] = {"tiles": Tiling, "anyres": AnyRes, "split": Split}
"""Fit -> its settings, for fits that cut an image into squares."""

Grid = tuple[int, int]
"""Rows and columns of the patches of an image of native aspect ratio."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any shape becomes the views that a tower sees.

    A view is a square, or with fit "native" a patch. Values of `fit`:

    - squash: resize to the square and lose the aspect ratio (SigLIP)
    - pad: pad to a square with the mean colour, then resize (LLaVA's `pad`)
    - shortest-edge-crop: resize the short side, crop the centre (CLIP)
    - longest-edge-pad: resize the long side, pad right and below with 0 after normalising (SAM)
    - tiles: cut into squares by `tiling`, a `Tiling` (InternVL)
    - anyres: seen as a whole, then padded and cut by `tiling`, an `AnyRes` (LLaVA-NeXT, LLaVA-OneVision)
    - split: cut by `tiling`, a `Split`, with markers between the views (Idefics3, nanoVLM)
    - native: resize to nearly `max_patches` patches; the aspect ratio is kept up to a patch (SigLIP 2)

    Attributes:
        mean: Of each channel, for values from 0 to 1.
        std: Standard deviation of each channel.
        resample: "bilinear", "bicubic" or "lanczos".
        fit: See above.
        crop_fraction: Fraction of the resized short side that the crop keeps (DINOv2: 224 / 256).
        tiling: Only with fits that cut the image; None: InternVL's, LLaVA-1.6's or Idefics3's.
        max_patches: Only with fit "native"; None: as many as the tower has learned positions.

    Raises:
        UserError: A value is unknown or out of range, or belongs to another fit.
    """

    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resample: str = "bicubic"
    fit: str = "shortest-edge-crop"
    crop_fraction: float = 1.0
    tiling: Tiling | AnyRes | Split | None = None
    max_patches: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _three("mean", self.mean))
        object.__setattr__(self, "std", _three("std", self.std))
        if min(self.std) <= 0:
            raise UserError(f"preprocessing std is {self.std}; expected numbers above 0, by which pixels are divided")
        if self.fit not in FITS:
            raise UserError(f"preprocessing fit {self.fit!r} is unknown; expected one of {', '.join(FITS)}")
        if self.resample not in RESAMPLINGS:
            known = ", ".join(RESAMPLINGS)
            raise UserError(f"preprocessing resample {self.resample!r} is unknown; expected one of {known}")
        if not (isinstance(self.crop_fraction, int | float) and LEAST_CROP <= self.crop_fraction <= 1):
            raise UserError(f"preprocessing crop_fraction is {self.crop_fraction!r:.80}; expected {LEAST_CROP} to 1")
        self._complete_tiling()
        if self.fit != "native" and self.max_patches is not None:
            raise UserError(f"preprocessing has max_patches, but its fit is {self.fit!r}; only fit 'native' takes it")
        if self.max_patches is not None:
            check_range("preprocessing: max_patches", self.max_patches, MOST_PATCHES)

    def _complete_tiling(self) -> None:
        kind = TILINGS.get(self.fit)
        if kind is None and self.tiling is not None:
            raise UserError(
                f"preprocessing has a tiling, but its fit is {self.fit!r}; only fits {', '.join(TILINGS)} take one"
            )
        if kind is not None and isinstance(self.tiling, dict | None):
            object.__setattr__(self, "tiling", kind(**self.tiling or {}))
        if kind is not None and not isinstance(self.tiling, kind):
            raise UserError(f"preprocessing fit {self.fit!r} takes a {kind.__name__}, found {self.tiling}")

    @property
    def has_newline(self) -> bool:
        """Whether images have slots for a learned vector at the end of a row, and so a slot map."""
        return self.tiling is not None and self.tiling.has_newline


def _three(name: str, values: Any) -> tuple[float, ...]:
    """The values of the three channels, as a tuple.

    Raises:
        UserError: they are not three finite numbers.
    """
    found = tuple(values) if isinstance(values, list | tuple) else ()
    if len(found) != 3 or not all(isinstance(value, int | float) and isfinite(value) for value in found):
        raise UserError(f"preprocessing {name} is {values!r}; expected three numbers, for red, green and blue")
    return found


@dataclass(frozen=True)
class TowerSpec:
    """Input and output of a tower: pixels in, `patches: float[B, tokens, dim]` out.

    Attributes:
        image_size: Side of the input square in pixels. With fit "native", of the square with the learned positions.
        patch_size: Side of a patch in pixels.
        tokens: Number of features for one view.
        dim: Width of a feature.
        preprocessing: How images become views.
    """

    image_size: int
    patch_size: int
    tokens: int
    dim: int
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    @property
    def native(self) -> bool:
        """Whether the fit is "native": a view is a patch and images need a grid."""
        return self.preprocessing.fit == "native"

    @property
    def view_size(self) -> int:
        """Side of a view in pixels."""
        return self.patch_size if self.native else self.image_size

    def grid(self, size: Size) -> Grid | None:
        """Grid of patches of an image with this width and height; None unless the fit is "native"."""
        if not self.native:
            return None
        width, height = native_size(*size, self.patch_size, self.preprocessing.max_patches)
        return height // self.patch_size, width // self.patch_size

    def views(self, size: Size, several: bool = False) -> int:
        """Number of views of an image with this width and height, and whether its conversation has several images."""
        if grid := self.grid(size):
            return grid[0] * grid[1]
        tiling = self.preprocessing.tiling
        if tiling is None or (several and tiling.one_view_if_several):
            return 1
        return tiling.views(size, self.image_size)

    def layouts(self, sizes: Sequence[Size], tokens_per_view: int) -> list[ImageLayout]:
        """Views and slots of the images of one conversation.

        Planning, rendering and collation all use it.

        Args:
            sizes: Width and height of each image, in reading order.
            tokens_per_view: Number of projected features of a view (`mmchat.model.projectors.slots_per_image`).
        """
        tiling = self.preprocessing.tiling
        if tiling is None:
            return [views_only(self.views(size), tokens_per_view) for size in sizes]
        return tiling.layouts(sizes, self.image_size, tokens_per_view)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TowerSpec":
        """Inverse of `to_dict`."""
        return cls(**{**values, "preprocessing": Preprocessing(**values["preprocessing"])})


@dataclass(frozen=True)
class TowerConfig:
    """All that is needed to build a tower, except its weights.

    Attributes:
        family: Key of `mmchat.vision.families.FAMILIES`.
        backbone: Keyword arguments of the backbone's transformers config.
        layer: Hidden states that are the features, numbered as in transformers: 0 is the embeddings, -1 the output of
            the last block, -2 the one before (LLaVA, Vary). Several are concatenated on channels. Blocks above the last
            are not run.
        class_token: Whether the class token is the first feature.
        final_norm: Whether the norm after the last block is applied to the features, whatever the layer (DINOv2).
        antialias: Whether interpolation of learned positions for another image size is antialiased (open_clip, timm).
        preprocessing: How images become views.
    """

    family: str
    backbone: dict[str, Any]
    layer: int | tuple[int, ...] = -1
    class_token: bool = False
    final_norm: bool = False
    antialias: bool = False
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        if isinstance(self.layer, list):
            object.__setattr__(self, "layer", tuple(self.layer))
        layers = self.layer if isinstance(self.layer, tuple) else (self.layer,)
        if not layers or not all(type(layer) is int for layer in layers):
            raise UserError(f"tower config: layer is {self.layer!r:.80}; expected a number, or a list of numbers")
        for name in ("class_token", "final_norm", "antialias"):
            if not isinstance(value := getattr(self, name), bool):
                raise UserError(f"tower config: {name} is {value!r:.80}; expected true or false")
        if not (isinstance(self.family, str) and isinstance(self.backbone, dict)):
            raise UserError(f"tower config: expected the name of a family and keys of its backbone, found {self!r:.80}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TowerConfig":
        """Inverse of `to_dict`."""
        values = dict(values)
        preprocessing = Preprocessing(**values.pop("preprocessing", {}))
        return cls(**values, preprocessing=preprocessing)


def with_fit(
    config: TowerConfig, fit: Fit, tiling: Tiling | AnyRes | Split | None = None, max_patches: int | None = None
) -> TowerConfig:
    """A tower config with another fit.

    Args:
        config: The tower's config.
        fit: See `Preprocessing`.
        tiling: For fits that cut the image; None: the config's if it has that fit, else as in `Preprocessing`.
        max_patches: For fit "native"; None: the config's if it has that fit, else the number of learned positions.

    Raises:
        UserError: An argument belongs to another fit.
    """
    preprocessing = config.preprocessing
    if fit == preprocessing.fit and tiling is None and max_patches is None:
        return config
    return replace(config, preprocessing=replace(preprocessing, fit=fit, tiling=tiling, max_patches=max_patches))


def refuse_several_views(spec: TowerSpec, what: str) -> None:
    """Raise UserError unless a tower sees one square of each image, which `what` needs."""
    if (fit := spec.preprocessing.fit) in (*TILINGS, "native"):
        raise UserError(f"{what} takes one square of each image, but the tower's fit is {fit!r}; choose another fit")


def refuse_unequal_views(specs: Sequence[TowerSpec]) -> None:
    """Raise UserError if the towers of one model have different views of an image: their slots are shared."""
    if len(specs) > 1 and any(spec.native for spec in specs):
        raise UserError(
            f"a tower of fit native must be the only one, found {', '.join(spec.preprocessing.fit for spec in specs)}: "
            "other towers cannot use its patches; give all towers one fit that makes squares (--fit)"
        )
    tilings = {spec.preprocessing.tiling and (spec.preprocessing.tiling, spec.image_size) for spec in specs}
    if len(tilings) > 1:
        found = "; ".join(f"fit {s.preprocessing.fit} {s.preprocessing.tiling or ''} at {s.image_size}" for s in specs)
        raise UserError(
            f"all towers must see the same tiles of an image, or one square each, found {found}; give them the same "
            "fit, tiling and image size"
        )
