"""One engine for many requests at a time: continuous batching of prompts with images on one model."""

from mmchat.inference.engine.engine import Engine
from mmchat.inference.engine.request import Handle, Prompt, Request, Result, TokenLogprobs
from mmchat.inference.engine.settings import EngineSettings
from mmchat.inference.engine.status import Status

__all__ = ["Engine", "EngineSettings", "Handle", "Prompt", "Request", "Result", "Status", "TokenLogprobs"]
