"""The README.md of exported assistants: its facts, its code, and that `mmchat push` takes the directory."""

import re
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from mmchat.cli.push import kind_of, travelling_files
from mmchat.conversion import import_model
from mmchat.conversion.card import write_card
from mmchat.conversion.formats import TARGETS
from mmchat.errors import UserError
from mmchat.front_matter import front_matter, licence, read_front_matter
from mmchat.model.directory import load_assistant, load_processor
from tests.conversion.gguf_assistants import make_assistant as make_gguf_assistant

BY_NAME = {target.name: target for target in TARGETS}


def code_of(directory):
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    return code.replace("path/of/this/directory", str(directory))


def written(name, model, processor, source, out):
    """What an export writes, without the comparison."""
    BY_NAME[name].export(model, processor).write(out)
    write_card(out, model, BY_NAME[name], source)
    return out


@pytest.fixture(scope="module")
def exported(assistant_dir, data_dir, tmp_path_factory):
    """exported(name): a tiny assistant in a format that can express it."""
    folder = tmp_path_factory.mktemp("cards")
    made = {}

    def assistant(name):
        if name == "gguf":
            pytest.importorskip("gguf", reason="the extra [gguf] is not installed")
            return make_gguf_assistant(folder / "parts")
        if name == "llava":
            options = {"tokenizer": str(data_dir / "tokenizers" / "llama_like_legacy_false"), "template": "vicuna_v1"}
            return import_model(data_dir / "llava_original_full", vision=str(data_dir / "clip_vit_tiny_hf4"), **options)
        return load_assistant(assistant_dir)

    def make(name):
        if name not in made:
            made[name] = written(name, *assistant(name), assistant_dir, folder / name)
        return made[name]

    return make


def test_the_code_for_transformers_runs(exported, assistant_dir, make_image, tmp_path, monkeypatch, capsys):
    make_image().save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code_of(exported("llava-hf")), found)
    processor = load_processor(assistant_dir)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    prompt = processor.render(asked, add_generation_prompt=True).input_ids
    assert found["inputs"]["input_ids"][0].tolist() == prompt
    assert type(found["model"]).__name__ == "LlavaForConditionalGeneration"
    answer = processor.tokenizer.decode(found["output"][0, len(prompt) :], skip_special_tokens=True)
    assert capsys.readouterr().out.strip() == answer.strip() != ""


def test_the_code_for_the_original_layout_runs(exported, data_dir):
    found = {}
    exec(code_of(exported("llava")), found)
    published = load_file(data_dir / "llava_original_full" / "model.safetensors")["model.mm_projector.0.weight"]
    assert torch.equal(found["model"].projectors[0][0].weight, published)
    assert found["processor"].template == "vicuna_v1"
    assert "--conv-mode v1 " in (exported("llava") / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "library", "slots"),
    [
        ("llava-hf", "transformers", "<img><imgpad></img>"),
        ("llava", "llava", "<imgpad>"),
        ("gguf", "llama.cpp", "<img><imgpad></img>"),
    ],
)
def test_facts_and_push(name, library, slots, exported):
    out = exported(name)
    head = read_front_matter(out / "README.md")
    assert (head["library_name"], head["pipeline_tag"]) == (library, "image-text-to-text") and "license" not in head
    text = (out / "README.md").read_text()
    assert f"| image slots | 16 per view: `{slots}` |" in text
    assert "| conversation template | `vicuna_v1` |" in text and BY_NAME[name].description in text
    assert kind_of(out)[0] == "exported model"
    files = {file.relative_to(out).as_posix() for file in travelling_files(out)}
    assert files == {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_a_folder_without_a_model_is_not_pushed(exported, tmp_path):
    out = shutil.copytree(exported("llava"), tmp_path / "llava")
    (out / "logs").mkdir()
    with pytest.raises(UserError, match="does not belong to a model: logs;"):
        travelling_files(out)


def test_base_models_and_licences(make_assistant, tmp_path, monkeypatch):
    """The licence is what the user wrote into the card of the model; those of the bases are what their cards name."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text(front_matter({"license": "other", "license_name": "tulip"}) + "text")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n")
    cached = {"someone/opt": str(tmp_path / "base" / "README.md")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: cached.get(repo))
    model, processor = make_assistant()
    model.config.base_models = ["someone/opt", "someone/clip"]
    out = written("llava-hf", model, processor, tmp_path / "source", tmp_path / "out")
    head = read_front_matter(out / "README.md")
    assert head["base_model"] == ["someone/opt", "someone/clip"] and head["license"] == "mit"
    assert "| base models | `someone/opt` (tulip), `someone/clip` |" in (out / "README.md").read_text()


@pytest.mark.parametrize("text", ["", "no head", "---\n[a, b]\n---\n", "---\na: [\n---\n", "---\nlicense: mit\nno end"])
def test_a_card_without_a_head_has_no_values(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert read_front_matter(tmp_path / "README.md") == licence(tmp_path / "none.md") == {}
