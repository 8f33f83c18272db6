"""mmchat: train and run multimodal assistants of the LLaVA and Vary kind.

Importing the package loads neither torch nor transformers. The classes below are imported on first access, which also
registers them with transformers' Auto classes. `import mmchat.auto` does both at once.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["MMChatConfig", "MMChatForConditionalGeneration", "MMChatProcessor"]


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module("mmchat.auto"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
