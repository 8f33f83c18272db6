"""Every way to ask gives the token ids that training gave for the same words, with every template and tokenizer."""

import numpy as np
import pytest
from PIL import Image

from mmchat.inference import Generator
from mmchat.model.image_processor import MMChatImageProcessor
from mmchat.model.processor import MMChatProcessor
from tests.conversation.test_render_properties import choose, each_pair

QUESTION = "What is this?"
ANSWER = {"from": "gpt", "value": "Noise."}


@pytest.fixture
def images():
    noise = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


@pytest.fixture
def processor(tokenizers, make_tower, name, key):
    tokenizer, template = choose(tokenizers, name, key)
    tower = MMChatImageProcessor([make_tower().spec.to_dict()])
    return MMChatProcessor(tower, tokenizer, template=template.name, image_tokens=16)


@pytest.mark.parametrize("count", [1, 2])
@each_pair
def test_asked_as_trained(processor, images, count):
    images = images[:count]
    record = [{"from": "human", "value": "<image>\n" * count + QUESTION}, ANSWER]
    trained = processor.render(record).input_ids

    parts = [{"type": "image", "image": image} for image in images]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]
    prompt = {"add_generation_prompt": True}
    templated = processor.apply_chat_template(messages, tokenize=True, return_dict=True, **prompt)["input_ids"][0]
    # What the pipeline of transformers does: the text of the template first, then text and images together.
    text = processor.apply_chat_template(messages, tokenize=False, **prompt)
    piped = processor(images=images, text=text)["input_ids"][0]
    # What a generator asks, without the model that would answer.
    generator = object.__new__(Generator)
    generator.processor = processor
    generated = generator.prompt(*generator.conversation(QUESTION, images, ())).input_ids

    assert templated.tolist() == piped.tolist() == generated == trained[: len(generated)]
    assert len(generated) < len(trained)
