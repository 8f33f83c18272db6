"""Tiny random InternVL assistants in transformers' layout, and the inputs of their class for an image."""

import json

import torch
from PIL import Image
from transformers import AutoTokenizer, InternVLConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from mmchat.conversation import SlotTokens
from tests.conftest import DATA, LANGUAGE, TOKENIZER_OF

SLOTS = SlotTokens("<IMG_CONTEXT>", "<img>", "</img>")
SIDE, PATCH, SEQ_LENGTH = 28, 7, 4
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": [SIDE, SIDE],
    "patch_size": [PATCH, PATCH],
    "attention_bias": True,
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
JINJA = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<IMG_CONTEXT>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Writes what the chat template of transformers' conversion script writes (convert_internvl_weights_to_hf.py)."""


def make_tokenizer(language):
    """The script gives a Llama's tokenizer no prefix, too."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / TOKENIZER_OF[language], add_prefix_space=False)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", *SLOTS.tokens, "<video>"], special_tokens=True)
    return tokenizer


def make_internvl(folder, language="qwen2", tied=False, vision=None, processor=None, jinja=JINJA, seed=0, **config):
    """Write a model as transformers does, with tokenizer and processor; returns it in evaluation mode."""
    tokenizer = make_tokenizer(language)
    text = {**LANGUAGE[language], "model_type": language, "vocab_size": len(tokenizer) + 3}
    settings = InternVLConfig(
        vision_config=VISION | (vision or {}),
        text_config=text | {"tie_word_embeddings": tied},
        image_token_id=tokenizer.convert_tokens_to_ids(SLOTS.pad),
        image_seq_length=SEQ_LENGTH,
        tie_word_embeddings=tied,
        **config,
    )
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (0.5 if parameter.ndim == 1 else 0))
    model.save_pretrained(folder)
    tokenizer.chat_template = jinja
    tokenizer.save_pretrained(folder)
    image_processor = make_image_processor(**(processor or {}))
    files = {"image_processor": image_processor.to_dict() | {"crop_to_patches": False}, "image_seq_length": SEQ_LENGTH}
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "InternVLProcessor", **files}))
    return model


def make_image_processor(**changes):
    settings = {"size": {"height": SIDE, "width": SIDE}, "min_patches": 1, "max_patches": 4, **IMAGENET}
    return GotOcr2ImageProcessorPil(crop_to_patches=True, **(settings | changes))


def image_of(size):
    """A smooth random image."""
    generator = torch.Generator().manual_seed(size[0] * 1000 + size[1])
    coarse = torch.randint(256, (5, 5, 3), generator=generator, dtype=torch.uint8).numpy()
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def foreign_inputs(tokenizer, image_processor, text, images):
    """What `InternVLProcessor` gives for a text that its chat template wrote; it needs torchvision, which is absent."""
    processed = image_processor(images, return_tensors="pt") if images else {}
    for views in processed.pop("num_patches") if images else ():
        group = f"{SLOTS.start}{'#' * (SEQ_LENGTH * int(views))}{SLOTS.end}"
        text = text.replace(SLOTS.pad, group, 1)
    ids = tokenizer(text.replace("#", SLOTS.pad), return_tensors="pt")
    return {**ids, **processed}
