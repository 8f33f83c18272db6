"""Folders of Hugging Face `datasets` (`save_to_disk`) as a table of rows, which it memory-maps.

Images stay encoded: `{"bytes", "path"}`, as `datasets.Image` stores them.
"""

from typing import Any

from mmchat.errors import UserError
from mmchat.extras import require


class ArrowTable:
    """Rows of Arrow files."""

    def __init__(self, files: list[str], name: str, dataset: Any) -> None:
        self.files, self._name = files, name
        # The "arrow" format returns stored values; other formats would decode the images.
        self._dataset = dataset.with_format("arrow")

    @classmethod
    def from_disk(cls, folder: str) -> "ArrowTable":
        """Open what `Dataset.save_to_disk` wrote. Raises UserError for a dictionary of splits."""
        dataset = _open(lambda datasets: datasets.load_from_disk(folder), folder)
        if isinstance(dataset, dict):
            splits = ", ".join(f"{folder}/{split}" for split in dataset)
            raise UserError(f"{folder} holds several splits; name one of {splits}")
        return cls([file["filename"] for file in dataset.cache_files], folder, dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def row(self, index: int) -> tuple[str, Any]:
        (item,) = self._dataset[index : index + 1].to_pylist()
        return f"{self._name}:row {index + 1}", item


def _open(opening: Any, name: str) -> Any:
    require("datasets", "pyarrow")
    import datasets

    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return opening(datasets)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, UserError):
            raise
        cause = error.__cause__ or error
        raise UserError(f"{name} cannot be read by datasets: {type(cause).__name__}: {str(cause)[:300]}") from None
    finally:
        if shown:
            datasets.enable_progress_bars()
