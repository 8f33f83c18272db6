"""Import of whole assistants from other code bases: `import_model`."""

from mmchat.conversion.importing import import_model

__all__ = ["import_model"]
