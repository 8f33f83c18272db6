"""Whole assistants from and for other programs: `import_model`, `export_model`."""

from mmchat.conversion.exporting import export_model
from mmchat.conversion.importing import import_model

__all__ = ["export_model", "import_model"]
