"""The generator gives the same text in batches, alone and as a stream."""

from functools import partial

import pytest
import torch
from PIL import Image
from transformers import pipeline

from mmchat.errors import UserError
from mmchat.inference import Generator
from mmchat.model.directory import save_assistant
from mmchat.model.processor import pad_left


@pytest.fixture(scope="module")
def generator(assistant_dir):
    return Generator(assistant_dir, device="cpu")


def asked(generator, question, images):
    return generator.conversation(question, images, ())[0]


def test_many_conversations_get_the_answers_that_each_gets_alone(generator, make_image):
    cases = [
        ("What is this?", [make_image(0)]),
        ("Two and two?", []),
        ("Compare these two images, one after the other, in a few words.", [make_image(1), make_image(2, 64, 10)]),
        ("Hm", [make_image(3)]),
    ]
    conversations = [asked(generator, question, images) for question, images in cases]
    together = generator.generate(conversations, [images for _, images in cases], max_new_tokens=12)
    alone = [generator.chat(question, images, max_new_tokens=12) for question, images in cases]
    assert together == alone == [reference(generator, *case) for case in zip(conversations, cases, strict=True)]
    assert len(set(alone)) > 1


def reference(generator, messages, case):
    """The answer of transformers' `generate`."""
    images = case[1]
    ids = generator.processor.render(
        messages, generator.processor.layouts([image.size for image in images]), add_generation_prompt=True
    ).input_ids
    inputs = generator.processor.image_inputs([images]) if images else {}
    output = generator.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=12, do_sample=False, **inputs)
    return generator.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()


def test_chat_caption_and_stream_agree(generator, make_image):
    prompt, image = "Describe the image.", make_image(4)
    answer = generator.chat(prompt, image, max_new_tokens=10)
    assert answer
    assert generator.caption([image], prompt, max_new_tokens=10) == [answer]
    assert "".join(generator.stream(prompt, image, max_new_tokens=10)).strip() == answer
    images = [make_image(seed) for seed in range(40)]  # more than are in progress at once
    captions = generator.caption(images, max_new_tokens=6)
    assert captions == [generator.chat(prompt, one, max_new_tokens=6) for one in images]


def test_images_in_every_form(generator, make_image, tmp_path):
    path = tmp_path / "image.png"
    make_image(6).save(path)
    answers = {
        generator.chat("What?", one, max_new_tokens=6)
        for one in (path, str(path), path.read_bytes(), [path], partial(Image.open, path))
    }
    assert answers == {generator.chat("What?", make_image(6), max_new_tokens=6)}


def test_without_a_cache_the_answer_is_the_same(generator, make_image):
    inputs = generator.processor.render(asked(generator, "What?", [make_image()]), add_generation_prompt=True)
    kwargs = {
        "input_ids": torch.tensor([inputs.input_ids]),
        "pixel_values": generator.processor.image_processor([make_image()])["pixel_values"],
        "do_sample": False,
        "max_new_tokens": 8,
    }
    with_cache = generator.model.generate(**kwargs)
    assert torch.equal(generator.model.generate(**kwargs, use_cache=False), with_cache)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3, "top_k": 1}])
def test_copied_rows_keep_their_images(generator, make_image, monkeypatch, options):
    """Beam search: each copy of a row gets the images of that row, in order."""
    cases = [[make_image(0), make_image(1)], [], [make_image(2)]]
    rows = [asked(generator, "What?", images) for images in cases]
    render, model = generator.processor.render, generator.model
    encoded = [render(messages, add_generation_prompt=True).input_ids for messages in rows]
    every = [make_image(0), make_image(1), make_image(2)]
    pixels = generator.processor.image_processor(every)["pixel_values"]
    seen_by_tower = []
    forward = type(model.towers[0]).forward

    def watch(tower, seen, *args):
        seen_by_tower.append(seen)
        return forward(tower, seen, *args)

    monkeypatch.setattr(type(model.towers[0]), "forward", watch)
    model.generate(**pad_left(encoded, 0), pixel_values=pixels, max_new_tokens=3, **options)
    assert torch.equal(seen_by_tower[0], pixels[[0, 1] * 3 + [2] * 3])
    assert len(seen_by_tower) == 1  # later steps read the cache


def test_history_images_come_first(generator, make_image):
    history = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "Noise."},
    ]
    first, second = make_image(0), make_image(1)
    messages, images = generator.conversation("And this?", [first, second], history)
    kinds = [part["type"] for part in messages[-1]["content"]]
    assert kinds == ["image", "text"]
    assert images == [first, second]
    assert generator.chat("And this?", [first, second], history, max_new_tokens=4) is not None
    with pytest.raises(UserError, match="the history mentions 1 images, but 0 were given"):
        generator.chat("And this?", [], history)


def test_the_pipeline_of_transformers_gives_the_same_answer(generator, make_image):
    pipe = pipeline("image-text-to-text", model=generator.model, processor=generator.processor)
    content = [{"type": "image", "image": make_image(2)}, {"type": "text", "text": "What is this?"}]
    messages = [{"role": "user", "content": content}]
    (answer,) = pipe(text=messages, max_new_tokens=8, do_sample=False, return_full_text=False)
    expected = generator.chat("What is this?", make_image(2), max_new_tokens=8)
    assert answer["generated_text"].strip() == expected != generator.chat("What?", make_image(2), max_new_tokens=8)


def test_an_error_inside_a_stream_is_raised(generator, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the model broke")

    monkeypatch.setattr(generator.engine._decoder, "prefill", fail)
    with pytest.raises(RuntimeError, match="the model broke"):
        list(generator.stream("What?"))


def test_temperature_samples(generator, make_image):
    torch.manual_seed(0)
    answers = {generator.chat("What?", make_image(), temperature=2.0, max_new_tokens=8) for _ in range(4)}
    assert len(answers) > 1


def test_closing_a_stream_frees_its_slot(generator, make_image, monkeypatch):
    """A closed stream must not leave the model running."""
    monkeypatch.setattr(generator.model.generation_config, "eos_token_id", None)
    counters = generator.engine.counters
    before = counters.decode_steps
    stream = generator.stream("What is this?", make_image(), max_new_tokens=100)
    next(stream)
    stream.close()
    generator.chat("And now?", max_new_tokens=1)  # a step after the one in which the slot was freed
    seen = counters.decode_steps
    assert seen - before < 99
    generator.chat("And now?", max_new_tokens=1)
    assert counters.decode_steps == seen


def test_the_engine_is_closed_and_started_again(assistant_dir):
    with Generator(assistant_dir, device="cpu") as generator:
        first = generator.chat("What?", max_new_tokens=6)
        handle = generator.submit(*generator.conversation("What?", [], []), max_new_tokens=100).handle
        generator.close()
        assert handle.done
        assert generator.chat("What?", max_new_tokens=6) == first


def test_pieces_of_a_stream_are_the_answer_and_end_before_a_stop_string(generator, make_image):
    messages, images = generator.conversation("What is this?", make_image(3), [])
    answer = generator.submit(messages, images, max_new_tokens=30)
    pieces = list(answer)
    text = answer.result().text
    assert "".join(pieces) == text and len(pieces) > 3
    stop = text[len(text) // 2 :][:3]
    stopped = generator.submit(messages, images, max_new_tokens=30, stop=[stop])
    assert "".join(stopped) == stopped.result().text == text[: text.index(stop)].rstrip()
    assert stopped.result().reason == "stop"


def test_a_seed_repeats_a_sample(generator, make_image):
    options = {"temperature": 2.0, "top_p": 0.95, "top_k": 50, "max_new_tokens": 12}
    answers = [generator.chat("What?", make_image(), seed=seed, **options) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_conversation_longer_than_the_context_is_refused(generator):
    context = generator.model.config.text_config.max_position_embeddings
    with pytest.raises(UserError, match=rf"has \d+ tokens with its images, but the model's context is {context}"):
        generator.chat("word " * context)


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0}, {"repeats": 1}],
)
def test_options_out_of_range_are_refused(generator, options):
    with pytest.raises(UserError, match=next(iter(options))):
        generator.chat("What?", **options)


def test_an_unknown_option_is_a_type_error(generator):
    with pytest.raises(TypeError, match="num_beams"):
        generator.submit([], num_beams=3)


@pytest.mark.parametrize("kind", ["bloom", "mpt"])
def test_positions_without_a_limit(make_assistant, make_image, tmp_path, kind):
    """ALiBi: no `max_position_embeddings`, and BLOOM computes positions from the mask."""
    save_assistant(*make_assistant(kind, words="llama"), tmp_path)
    generator = Generator(tmp_path, device="cpu")
    cases = [
        ("What is this?", [make_image(0)]),
        ("Two and two?", []),
        ("Compare these two images, one after the other.", [make_image(1), make_image(2)]),
    ]
    conversations = [asked(generator, question, images) for question, images in cases]
    together = generator.generate(conversations, [images for _, images in cases], max_new_tokens=12)
    alone = [generator.chat(question, images, max_new_tokens=12) for question, images in cases]
    assert together == alone == [reference(generator, *case) for case in zip(conversations, cases, strict=True)]
    assert "".join(generator.stream(*cases[0], max_new_tokens=12)).strip() == alone[0]
