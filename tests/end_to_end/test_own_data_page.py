"""docs/own_data.md leads from a JSON file to `mmchat chat`: its commands as they are there, with tiny weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from tests.conftest import CLIP_28, DATA, LANGUAGE
from tests.docs.fences import commands_of, fences_of
from tests.launching import ROOT, launch_environment, metrics

PAGE = ROOT / "docs" / "own_data.md"
LONGEST = 900
"""Seconds of a command."""
LORA = ("mmchat recipe write own/lora", "mmchat train lora.yaml")
"""What the page says about the other recipe in words."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_image):
    """A user's folder: data.json, heldout.json, images/, and directories under the names of the hub."""
    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    language = folder / "Qwen" / "Qwen2.5-0.5B"
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers" / "qwen_like")
    config = AutoConfig.for_model("qwen2", **LANGUAGE["qwen2"] | {"max_position_embeddings": 4096}, vocab_size=600)
    AutoModelForCausalLM.from_config(config).save_pretrained(language)
    tokenizer.save_pretrained(language)
    tower = folder / "openai" / "clip-vit-base-patch16"
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPModel(CLIPConfig(vision_config=CLIP_28, text_config=text, projection_dim=32)).save_pretrained(tower)
    square = {"height": CLIP_28["image_size"], "width": CLIP_28["image_size"]}
    CLIPImageProcessor(size={"shortest_edge": CLIP_28["image_size"]}, crop_size=square).save_pretrained(tower)
    (folder / "images").mkdir()
    records = []
    for number, name in enumerate("abcdefghijklmnopqrst"):
        make_image(number).save(folder / "images" / f"{name}.jpg")
        turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": f"Noise {number}."}]
        records.append({"id": name, "image": f"images/{name}.jpg", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records[:16]))
    (folder / "heldout.json").write_text(json.dumps(records[16:]))
    return folder


def page_commands() -> list[str]:
    """The commands of the page, up to `mmchat report`."""
    blocks = fences_of(PAGE.read_text(encoding="utf-8"), PAGE.name)
    lines = [line for block in blocks if block.language == "bash" for line in commands_of(block.code)]
    last = next(number for number, line in enumerate(lines) if line.startswith("mmchat report "))
    return lines[: last + 1]


def type_in(line: str, folder: Path) -> str:
    """What a command prints, which must end well."""
    environment = launch_environment(HF_HUB_OFFLINE="1", COLUMNS="80")
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_leads_to_a_chat(folder):
    said = {line: type_in(line, folder) for line in [*page_commands(), *LORA]}
    begun = [" ".join(line.split()[:2]) for line in said]
    assert begun[:1] == ["mmchat init"] and {"mmchat plan", "mmchat train", "mmchat chat", "mmchat eval"} <= {*begun}

    def printed(start):
        return next(text for line, text in said.items() if line.startswith(start))

    assert "template qwen_2_5: " in printed("mmchat init")
    assert "mmchat recipe write own/pretrain" in printed("mmchat init")
    assert "it can run" in printed("mmchat plan")
    assert "next: mmchat chat runs/sft/model --image IMAGE" in printed("mmchat train sft")
    assert "no gradient" not in printed("mmchat train lora")  # a single step, after which half of a LoRA has none
    for run in ("pretrain", "sft", "lora"):
        assert all(row["loss"] > 0 for row in metrics(folder / "runs" / run) if "loss" in row)
        assert (folder / "runs" / run / "model" / "config.json").exists()
    assert (folder / "runs" / "lora" / "adapter").is_dir()
    assert "next: mmchat report runs/sft" in printed("mmchat eval")
    assert "Exact match in percent" in (folder / "runs" / "sft" / "report.html").read_text()
    assert "overall" in json.loads((folder / "runs" / "sft" / "scores.json").read_text())


def test_the_page_has_the_commands_that_are_typed():
    lines = page_commands()
    assert lines[0].startswith("mmchat init --language Qwen/Qwen2.5-0.5B ")
    assert [line.split()[1] for line in lines].count("train") == 2
