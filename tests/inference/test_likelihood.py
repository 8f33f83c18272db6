"""The likelihood of answers equals that of a forward over the whole conversation."""

import pytest
import torch

from mmchat.errors import UserError
from mmchat.inference import Generator
from mmchat.inference.likelihood import answer_likelihoods
from mmchat.model.directory import save_assistant


@pytest.mark.parametrize("kind", ["llama", "opt", "qwen2"])
def test_against_a_forward(make_assistant, make_image, tmp_path, kind):
    model, processor = make_assistant(kind)
    save_assistant(model, processor, tmp_path / "model")
    image = make_image()
    answers = ["A", "B", "a red dog", "a red cat, too"]
    with Generator(tmp_path / "model", device="cpu") as generator:
        messages, images = generator.conversation("Which?", image, [])
        found = answer_likelihoods(generator, messages, images, answers)
    start = len(processor.render(messages, processor.layouts([image.size]), add_generation_prompt=True).input_ids)
    inputs = processor.image_inputs([[image]])
    for answer, one in zip(answers, found, strict=True):
        turns = [*messages, {"role": "assistant", "content": answer}]
        ids = processor.render(turns, processor.layouts([image.size])).input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), **inputs).logits[0].log_softmax(-1)
        tokens = range(start, start + one.tokens)
        assert one.logprob == pytest.approx(sum(float(logits[at - 1, ids[at]]) for at in tokens), abs=1e-3)
        written = processor.tokenizer.decode(ids[start : start + one.tokens], skip_special_tokens=True)
        assert written.strip() == answer


def test_an_empty_answer(assistant_dir, make_image):
    with Generator(assistant_dir, device="cpu") as generator:
        messages, images = generator.conversation("Which?", make_image(), [])
        with pytest.raises(UserError, match="must not be empty"):
            answer_likelihoods(generator, messages, images, ["A", " "])
        with pytest.raises(UserError, match="exceed the context"):
            answer_likelihoods(generator, messages, images, ["word " * 600])
