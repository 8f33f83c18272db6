"""Registers mmchat's classes with transformers' Auto classes on import."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from mmchat.model.config import MMChatConfig
from mmchat.model.image_processor import MMChatImageProcessor
from mmchat.model.modeling import MMChatForConditionalGeneration
from mmchat.model.processor import MMChatProcessor

__all__ = ["MMChatConfig", "MMChatForConditionalGeneration", "MMChatImageProcessor", "MMChatProcessor"]

AutoConfig.register(MMChatConfig.model_type, MMChatConfig)
AutoModelForImageTextToText.register(MMChatConfig, MMChatForConditionalGeneration)
AutoProcessor.register(MMChatConfig, MMChatProcessor)
AutoImageProcessor.register(MMChatConfig, slow_image_processor_class=MMChatImageProcessor)
