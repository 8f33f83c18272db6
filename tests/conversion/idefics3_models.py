"""Tiny random Idefics3 and SmolVLM assistants as transformers writes them, and what their processors give."""

import json

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from tests.conftest import DATA, LANGUAGE

SIDE, PATCH = 28, 7
CLASSES = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil),
}
BOS = {"idefics3": "<|begin_of_text|>", "smolvlm": "<|im_start|>"}
SCALE = {"idefics3": 2, "smolvlm": 4}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
}
IMAGE, FAKE, WHOLE, END = "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
JINJA = (
    "BOS{% for message in messages %}{{ message['role'].capitalize() }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Writes what the chat templates of both families write."""


def make_tokenizer(kind):
    """Idefics3's tokenizer, a Llama 3's, puts BOS first; SmolVLM's does not. Both have tokens for six rows."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen_like")
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer.add_tokens([BOS[kind], IMAGE, FAKE, WHOLE, END, *places], special_tokens=True)
    tokenizer.bos_token = BOS[kind]
    if kind == "idefics3":
        bos = BOS[kind]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
        )
    tokenizer.chat_template = JINJA.replace("BOS", BOS[kind])
    return tokenizer


def make_idefics3(folder, kind="idefics3", tied=False, vision=None, processor=None, jinja=None, **config):
    """Write a model as transformers does, with tokenizer and processor; returns it in evaluation mode."""
    config_class, model_class, _ = CLASSES[kind]
    tokenizer = make_tokenizer(kind)
    text = {**LANGUAGE["llama"], "vocab_size": len(tokenizer) + 3, "tie_word_embeddings": tied, "model_type": "llama"}
    settings = {
        "vision_config": VISION | (vision or {}),
        "text_config": text,
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "scale_factor": SCALE[kind],
        "tie_word_embeddings": tied,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    model = model_class(config_class(**(settings | config))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (0.5 if parameter.ndim == 1 else 0))
    model.save_pretrained(folder)
    tokenizer.chat_template = jinja or tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    values = make_image_processor(kind, **(processor or {})).to_dict()
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    seq_len = {"image_seq_len": model.model.image_seq_len}
    (folder / "processor_config.json").write_text(json.dumps(seq_len))
    return model


def make_image_processor(kind, **changes):
    settings = {"size": {"longest_edge": 3 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    return CLASSES[kind][2](**(settings | changes))


def foreign_inputs(folder, kind, theirs, images, question="What is this?", **processor):
    """What the processor of transformers gives. SmolVLM's needs torchvision, so its parts are called one by one."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = make_image_processor(kind, **processor)
    messages = [{"role": "user", "content": [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    seq_len = theirs.model.image_seq_len
    if kind == "idefics3":
        whole = Idefics3Processor(image_processor, tokenizer, image_seq_len=seq_len)
        return whole(images=images, text=text, add_special_tokens=False, return_tensors="pt")
    processed = image_processor([images], return_row_col_info=True, return_tensors="pt")
    for rows, columns in zip(processed.pop("rows")[0], processed.pop("cols")[0], strict=True):
        written = get_image_prompt_string(int(rows), int(columns), seq_len, FAKE, "#", WHOLE)
        text = text.replace(IMAGE, written, 1)
    return {**tokenizer(text.replace("#", IMAGE), return_tensors="pt"), **processed}
