"""The README.md of a model directory: its facts, and its code."""

import re

import pytest
import yaml

from mmchat.errors import UserError
from mmchat.model.card import source_names, write_scores
from mmchat.model.directory import load_assistant, save_assistant


def test_the_code_of_the_card_runs(assistant_dir, make_image, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (assistant_dir / "README.md").read_text(), re.DOTALL)
    make_image().save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code.replace("path/of/this/directory", str(assistant_dir)), found)
    model, processor = load_assistant(assistant_dir)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    prompt = processor.render(asked, add_generation_prompt=True).input_ids
    assert found["inputs"]["input_ids"][0].tolist() == prompt
    answer = model.generate(**found["inputs"], max_new_tokens=64)[0, len(prompt) :]
    assert capsys.readouterr().out.strip() == processor.tokenizer.decode(answer, skip_special_tokens=True).strip()


def test_the_facts_of_the_card(make_assistant, make_tower, tmp_path):
    model, processor = make_assistant("opt", towers=[make_tower(layer=-2), make_tower(seed=1)])
    model.config.text_config.name_or_path = "someone/opt"
    save_assistant(model, processor, tmp_path / "model", source_names(["/home/me/data/pages.json", "charts"]))
    text = (tmp_path / "model" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["pipeline_tag"] == "image-text-to-text" and front["base_model"] == "someone/opt"
    rows = dict(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    assert rows["language model"] == f"opt, {sum(p.numel() for p in model.language_model.parameters()):,} parameters"
    assert rows["vision tower 1"].endswith("28 pixels, fit `shortest-edge-crop`, projector `mlp2x_gelu`")
    assert rows["image slots"] == "16 per view: `<img><imgpad></img>`"
    assert rows["conversation template"] == "`vary_opt`"
    assert rows["training data"] == "`pages`, `charts`"
    assert "home" not in text and "score" not in rows


def test_scores_of_the_card(make_assistant, tmp_path):
    """One table per data; a second evaluation of the same data replaces the first, and the rest stays."""
    save_assistant(*make_assistant(), tmp_path / "model")
    card = tmp_path / "model" / "README.md"
    before = card.read_text()
    scores = {"overall": 0.8125, "overall/blind": 0.25, "overall/questions": 1200, "overall/commonest": 0.2}
    write_scores(tmp_path / "model", "heldout.json", scores)
    once = card.read_text()
    write_scores(tmp_path / "model", "other.json", scores | {"overall": 0.5})
    write_scores(tmp_path / "model", "heldout.json", scores | {"overall": 0.9})
    text = card.read_text()
    assert "| `overall` | 1,200 | 81.2% | 25.0% |" in once
    assert "| `overall` | 1,200 | 90.0% | 25.0% |" in text and "81.2%" not in text and "50.0%" in text
    assert text.count("## Scores on `heldout.json`") == text.count("## Scores on `other.json`") == 1
    assert text.index("## Scores") < text.index("## Use") and before.split("## Use")[1] == text.split("## Use")[1]
    with pytest.raises(UserError, match="no model card that mmchat wrote"):
        write_scores(tmp_path, "a.json", scores)
