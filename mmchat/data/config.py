"""The data section of a run config; `mmchat data check` and `mmchat data show` read it too."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from mmchat.data.records import ImagePlace
from mmchat.settings import settings
from mmchat.settings_schema import field_infos


@settings
class SourceConfig:
    """One source of a mixture."""

    path: str = Field(description="file, folder, pattern with * or fsspec address; layouts: docs/guides/data.md")
    image_root: str | None = Field(
        None, description="folder that image paths are relative to; null: the folder of the data"
    )
    max_samples: int | None = Field(None, gt=0, description="use only the first N usable records")
    repeat: float = Field(1.0, gt=0, description="how often one epoch uses each record; 0.5 uses alternating halves")
    weight: float | None = Field(None, gt=0, description="share of an epoch, relative to the other sources' weights")
    max_turns: int | None = Field(None, gt=0, description="keep only the first N exchanges of each record")
    kinds: list[str] | None = Field(
        None, min_length=1, description="keep only exchanges of these kinds, which `kinds` of a record names"
    )
    without_kinds: list[str] | None = Field(None, min_length=1, description="leave out exchanges of these kinds")
    template: str | None = Field(None, description="conversation template of this source; null: the model's")
    image_place: ImagePlace = Field(
        "as_written",
        description="front: the image of a turn goes before its text with a line break, as in LLaVA's training",
    )
    index: Path | None = Field(None, description="clean.npz of `mmchat data check`: use only the clean records")
    draft: bool = Field(
        False,
        description="decode large JPEGs at 1/2, 1/4 or 1/8 if both sides stay twice the largest tower's or longer; "
        "faster, but not bit-identical",
    )
    max_pixels: int | None = Field(
        None,
        gt=0,
        description="refuse images that take more memory than so many pixels of 4 bytes, undecoded; null: 178,956,970",
    )
    allow_http: bool = Field(False, description="fetch images, or the file itself, over http(s)")


@settings
class DataConfig(SourceConfig):
    """One source, by its keys, or several under `sources`."""

    path: str | None = Field(None, description="one source: file, folder, pattern with * or fsspec URL")  # type: ignore[assignment]  # None: `sources`
    sources: dict[str, SourceConfig] = Field(default_factory=dict, description="several sources by name")
    epoch_samples: int | None = Field(None, gt=0, description="samples of one epoch, divided by the weights")
    max_length: int = Field(2048, gt=0, description="maximum tokens per sample, slots included; longer samples are cut")

    @model_validator(mode="after")
    def _one_or_several(self) -> "DataConfig":
        if (self.path is None) == (not self.sources):
            raise ValueError("give either path, or sources with a path each")
        if self.sources:
            misplaced = [key for key, default in _DEFAULTS.items() if getattr(self, key) != default]
            if misplaced:
                raise ValueError(f"{', '.join(misplaced)} belongs inside each of the sources, not next to `sources`")
        return self

    def by_name(self) -> dict[str, SourceConfig]:
        """All sources by name. A single source is named by its path."""
        if self.path is None:
            return self.sources
        return {self.path: SourceConfig(path=self.path, **{key: getattr(self, key) for key in _DEFAULTS})}


_DEFAULTS: dict[str, Any] = {name: info.default for name, info in field_infos(SourceConfig).items() if name != "path"}
