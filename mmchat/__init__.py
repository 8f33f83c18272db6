"""mmchat: grow and use multimodal assistants in the LLaVA/Vary manner.

Light on purpose: importing the package loads neither torch nor transformers. The classes below are
looked up on first access, which also registers them with transformers' Auto classes
(`import mmchat.auto` does the same at once).
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["MMChatConfig", "MMChatForConditionalGeneration", "MMChatProcessor"]


def __getattr__(name: str):
    if name in __all__:
        return getattr(import_module("mmchat.auto"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
