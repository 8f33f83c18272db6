"""Inference with a trained model: answers, streams, captions and OCR."""

from importlib import import_module

__all__ = ["Generator"]


def __getattr__(name: str):
    if name == "Generator":
        return import_module("mmchat.inference.generator").Generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
