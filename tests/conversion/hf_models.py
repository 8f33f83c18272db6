"""Tiny random assistants that transformers makes, and how imported ones are compared with them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from mmchat.conversion.checks import NEW_TOKENS, TOLERANCE, reference_samples
from tests.conftest import CLIP_28, DATA, LANGUAGE, TOKENIZER_OF

TOWER = {key: value for key, value in CLIP_28.items() if key != "projection_dim"}
LLAVA_JINJA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Writes what the Jinja of llava-hf/llava-1.5-7b-hf writes: no system message, no EOS after an answer."""
CLIP_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
}
SIGLIP_PROCESSOR = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 28, "width": 28}}


def tower_config(kind: str, **changes):
    return AutoConfig.for_model(f"{kind}_vision_model", **{**TOWER, **changes})


def open_tokenizer(kind: str, *tokens: str):
    """The tokenizer that fits a kind of language model, with more special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / TOKENIZER_OF[kind])
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer


def text_config(kind: str, tokenizer, **changes):
    """With more embeddings than the tokenizer has tokens, as published models have."""
    values = {**LANGUAGE[kind], "vocab_size": len(tokenizer) + 7, "tie_word_embeddings": False, **changes}
    return AutoConfig.for_model(kind, **values)


def spread(model, seed: int = 0):
    """Wide random weights, so that different inputs give visibly different logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15, generator=generator)
            else:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save_source(model, tokenizer, folder: Path, jinja: str | None, image_processor: dict) -> Path:
    """A directory as published: weights under transformers 4's names as far as transformers 5 writes them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    return folder


def rename_keys(folder: Path, rename) -> None:
    path = folder / "model.safetensors"
    save_file({rename(key): tensor for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def assert_answers_alike(model, processor, original, foreign_inputs=lambda sample: sample.inputs) -> None:
    """Logits and greedy tokens of an import are those of the original class for the same inputs."""
    for sample in reference_samples(model, processor):
        inputs = foreign_inputs(sample)
        with torch.no_grad():
            logits = original(**inputs).logits
        assert logits.std() > 0.1
        torch.testing.assert_close(sample.logits, logits, atol=TOLERANCE, rtol=0)
        limits = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
        ids = original.generate(**inputs, **limits, eos_token_id=model.generation_config.eos_token_id)
        assert ids[0, -NEW_TOKENS:].tolist() == sample.answer


def assert_learns(model, processor, images, steps: int = 20) -> None:
    """The loss of a few samples falls in every quarter of a short training."""
    model.train()
    model.requires_grad_(True)
    records = []
    for image, answer in zip(images, ("A cat.", "Two dogs.", "A red house by the sea."), strict=True):
        messages = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": answer}]
        rendered = processor.render(messages, processor.layouts([image.size]))
        ids, labels = torch.tensor([rendered.input_ids]), torch.tensor([rendered.labels])
        records.append({"input_ids": ids, "labels": labels, **processor.image_inputs([[image]])})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        loss = sum(model(**record).loss for record in records) / len(records)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    quarters = [sum(losses[start : start + steps // 4]) for start in range(0, steps, steps // 4)]
    assert quarters == sorted(quarters, reverse=True) and losses[-1] < 0.7 * losses[0]
    model.eval()
