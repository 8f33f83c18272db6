"""Model directories are self-contained, loaded strictly, and verified when saved."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmchat.errors import UserError
from mmchat.files import write_json
from mmchat.hub import resolve
from mmchat.inference import Generator
from mmchat.model.directory import load_assistant, load_processor, save_assistant
from mmchat.vision import load_tower, preprocess
from mmchat.vision.spec import Preprocessing

PAD, CROP = "pad", "shortest-edge-crop"


@pytest.fixture
def copy(assistant_dir, tmp_path):
    return shutil.copytree(assistant_dir, tmp_path / "copy")


def rewrite(directory, change):
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def test_missing_left_over_and_misshapen_weights_are_named(copy):
    bias = "projectors.0.2.bias"
    rewrite(copy, lambda weights: weights.pop(bias))
    with pytest.raises(UserError, match=rf"do not fit its config: missing: {bias}$"):
        load_assistant(copy)
    rewrite(copy, lambda weights: weights.update({bias: torch.zeros(3)}))
    with pytest.raises(UserError, match=r"of another shape: .*projectors\.0\.2\.bias"):
        load_assistant(copy)
    rewrite(copy, lambda weights: weights.update({bias: torch.zeros(32), "projectors.0.4.bias": torch.zeros(3)}))
    with pytest.raises(UserError, match=r"left over: projectors\.0\.4\.bias$"):
        load_assistant(copy)


def test_a_tokenizer_whose_slot_has_another_id_is_refused(copy):
    """A piece of the vocabulary is lost, and the ids of all added tokens are one smaller."""
    values = json.loads((copy / "tokenizer.json").read_text())
    values["model"]["vocab"].pop(next(reversed(values["model"]["vocab"])))
    (copy / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"copy: <imgpad> has the id \d+ in tokenizer.json, but \d+ in config.json"):
        load_assistant(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "processor_config.json", "tokenizer.json", "config.json"])
def test_an_incomplete_directory_says_what_it_lacks(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{'safetensors' if 'safetensors' in name else name}"):
        load_assistant(copy)


def test_weights_that_were_cut_off(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"the weights in .* are damaged or cut off: "):
        load_assistant(copy)


def test_directories_that_are_no_assistant(tmp_path):
    with pytest.raises(UserError, match=r"nothing does not exist; make one with `mmchat init`"):
        load_assistant(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        load_assistant(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match="holds a model of type 'llava', expected an assistant"):
        load_assistant(tmp_path)


SEES = {"vision_config": {}}
INIT = "`mmchat init --language"


@pytest.mark.parametrize(
    ("config", "command"),
    [
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, INIT + " {} --vision TOWER --out DIR`"),
        ({"model_type": "siglip", "architectures": ["SiglipModel"], **SEES}, INIT + " MODEL --vision {} --out DIR`"),
        ({"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], **SEES}, "`mmchat import {} DIR`"),
        ({"model_type": "llava_llama", "mm_vision_tower": "x"}, "`mmchat import {} DIR`"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "make one with `mmchat init`"),
    ],
)
def test_a_model_of_others_is_answered_with_the_command_that_makes_an_assistant(tmp_path, config, command):
    directory = tmp_path / "a model"
    write_json(directory / "config.json", config)
    expected = f"{directory} holds a model of type '{config['model_type']}', expected an assistant"
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        load_processor(directory)
    assert command.format(f"'{directory}'") in str(caught.value)


def test_a_run_stands_for_its_model(assistant_dir, tmp_path, capsys):
    run = tmp_path / "run"
    write_json(run / "config.yaml", {})
    with pytest.raises(UserError, match=rf"has not finished, so it has no model/; `mmchat train {run}/config.yaml --r"):
        load_assistant(run)
    shutil.copytree(assistant_dir, run / "model")
    capsys.readouterr()
    model, _ = load_assistant(run)
    load_processor(run)
    said = [line for line in capsys.readouterr().err.splitlines() if "is a run" in line]
    assert said == [f"{run} is a run; taking its model: {run}/model"]  # once
    assert model.config.template == "vicuna_v1"
    assert load_tower(run).spec == model.specs[0]
    with pytest.raises(UserError, match="is a run without LoRA: it has no adapter/, and model/ is its whole model"):
        resolve(run, part="adapter")
    (run / "adapter").mkdir()
    assert resolve(run, part="adapter") == run / "adapter"
    assert resolve(run / "model") == run / "model"


def test_config_holds_no_path_of_this_machine(assistant_dir):
    for name in ("config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"):
        text = (assistant_dir / name).read_text()
        assert not re.findall(r'"(?:/|~)[^"]*"', text), name
        assert str(assistant_dir.parent) not in text
    config = json.loads((assistant_dir / "config.json").read_text())
    assert config["model_type"] == "mmchat"
    assert config["towers"][0]["backbone"]["image_size"] == 28


def test_saving_notices_a_corrupted_copy(make_assistant, tmp_path, monkeypatch):
    """If the written weights differ from those in memory, the old directory is kept."""
    model, processor = make_assistant()
    target = tmp_path / "model"
    save_assistant(model, processor, target)
    before = (target / "model.safetensors").read_bytes()
    original = type(model).save_pretrained

    def corrupt(self, directory, *args, **kwargs):
        original(self, directory, *args, **kwargs)
        rewrite(directory, lambda weights: weights["language_model.model.norm.weight"].mul_(1.01))

    monkeypatch.setattr(type(model), "save_pretrained", corrupt)
    with pytest.raises(RuntimeError, match=r"differs from the one in memory by [\d.e-]+ in its outputs"):
        save_assistant(model, processor, target)
    assert (target / "model.safetensors").read_bytes() == before

    def poison(self, directory, *args, **kwargs):
        original(self, directory, *args, **kwargs)
        rewrite(directory, lambda weights: weights["language_model.model.norm.weight"].fill_(float("nan")))

    monkeypatch.setattr(type(model), "save_pretrained", poison)
    with pytest.raises(RuntimeError, match="differs from the one in memory by nan"):
        save_assistant(model, processor, target)


def test_another_fit_is_saved_and_used_wherever_the_model_goes(assistant_dir, make_image, tmp_path):
    """Padding keeps the sides of a wide image, cropping does not. A tower taken from the model pads too."""
    wide = make_image(width=60, height=20)
    model, processor = load_assistant(assistant_dir, fit="pad")
    save_assistant(model, processor, tmp_path / "model")
    (spec,) = load_processor(tmp_path / "model").image_processor.specs
    padded, cropped = (preprocess(wide, replace(spec, preprocessing=Preprocessing(fit=fit))) for fit in (PAD, CROP))
    for generator, expected in ((Generator(tmp_path / "model"), padded), (Generator(assistant_dir), cropped)):
        np.testing.assert_array_equal(generator.processor.image_processor.pixels(wide)[0], expected)
    assert (padded != cropped).any()
    assert load_tower(tmp_path / "model").config == model.towers[0].config
    assert load_tower(tmp_path / "model").spec.preprocessing.fit == PAD


def test_saving_replaces_and_keeps_the_mode(make_assistant, tmp_path):
    model, processor = make_assistant()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale.txt").write_text("of an older model")
    model.train()
    save_assistant(model, processor, tmp_path / "model")
    assert model.training
    assert not (tmp_path / "model" / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


AUTO = """
import json, sys, torch
from PIL import Image
import mmchat.auto
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
directory, image = sys.argv[1:]
config = AutoConfig.from_pretrained(directory)
model = AutoModelForImageTextToText.from_pretrained(directory)
processor = AutoProcessor.from_pretrained(directory)
image = Image.open(image)
chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "\\nWhat <imgpad>?"}]}]
inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
ids = inputs["input_ids"][0].tolist()
bare = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\\nWhat <imgpad>?"}]}]
output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
print(json.dumps({
    "types": [type(thing).__name__ for thing in (config, model, processor)],
    "ids": ids,
    "rendered": processor.render(bare, add_generation_prompt=True).input_ids,
    "answer": output[0, len(ids):].tolist(),
}))
"""


def test_auto_classes_in_a_fresh_interpreter(assistant_dir, make_image, tmp_path):
    path = tmp_path / "image.png"
    make_image().save(path)
    done = subprocess.run(
        [sys.executable, "-c", AUTO, str(assistant_dir), str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["types"] == ["MMChatConfig", "MMChatForConditionalGeneration", "MMChatProcessor"]
    assert found["ids"] == found["rendered"]
    # The same answer as by hand, token by token, without a cache.
    model, processor = load_assistant(assistant_dir)
    pixels = processor.image_processor([Image.open(path)])["pixel_values"]
    ids = list(found["ids"])
    for token in found["answer"]:
        with torch.no_grad():
            logits = model(torch.tensor([ids]), pixel_values=pixels).logits[0, -1]
        assert token == logits.argmax().item()
        ids.append(token)
    assert 1 <= len(found["answer"]) <= 5


def test_a_batch_of_chats_is_rendered_row_by_row(assistant_dir, make_image):
    _, processor = load_assistant(assistant_dir)
    texts, counts = ["Hm?", "Which of these two </s> is brighter, <img> or not?", "What is two and two?"], [1, 2, 0]
    seeds, chats, bare = iter(range(3)), [], []
    for text, count in zip(texts, counts, strict=True):
        words = [{"type": "text", "text": text}]
        images = [{"type": "image", "image": make_image(next(seeds))} for _ in range(count)]
        chats.append([{"role": "user", "content": images + words}])
        bare.append([{"role": "user", "content": [{"type": "image"}] * count + words}])
    inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True, add_generation_prompt=True)
    for row, mask, messages in zip(inputs["input_ids"], inputs["attention_mask"], bare, strict=True):
        ids = processor.render(messages, add_generation_prompt=True).input_ids
        assert row[mask.bool()].tolist() == ids
        assert mask.tolist() == [0] * (len(mask) - len(ids)) + [1] * len(ids)
    expected = processor.image_processor([make_image(seed) for seed in range(3)])["pixel_values"]
    assert torch.equal(inputs["pixel_values"], expected)


def test_the_processor_counts_images(assistant_dir, make_image):
    _, processor = load_assistant(assistant_dir)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hm?"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=[make_image()], text=[prompt, prompt.replace("<img><imgpad></img>", "")])
    assert inputs["attention_mask"].sum(dim=1).diff().item() < 0
    assert inputs["attention_mask"][:, -1].all()  # padded on the left
    with pytest.raises(UserError, match="the text has places for 1 images, but 2 images were given"):
        processor(images=[make_image(0), make_image(1)], text=prompt)
