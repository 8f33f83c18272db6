"""The stages and configs of the portable quickstart with a few steps each, in the order of scripts/portable.sh."""

import json
import sys

import pytest

from mmchat.auto import MMChatProcessor
from tests.end_to_end.test_path import BIN, run
from tests.launching import ROOT, launch, metrics

CONFIGS = ROOT / "configs" / "quickstart" / "portable"
SMALL = ("--batch_size", "8", "--steps", "2", "--optimizer.warmup", "1")


@pytest.mark.slow
def test_every_stage_starts_from_the_one_before(tmp_path):
    data = tmp_path / "data"
    counts = ("--closeups", 600, "--statements", 40, "--train", 40, "--dev", 8, "--heldout", 6)
    splits = ("closeups", "statements", "train", "dev", "heldout")
    run(sys.executable, ROOT / "data_tools" / "digit_scenes.py", "--out", data, *counts, "--only", *splits, cwd=ROOT)
    texts = (data / "statements.json", data / "train.json")
    run(sys.executable, ROOT / "data_tools" / "train_tokenizer.py", *texts, "--out", tmp_path / "tokenizer", cwd=ROOT)
    classes = ("--classes", data / "closeups.json", "--pool", "max")
    mmchat = BIN / "mmchat"

    def train(name: str, model: str, *words: object) -> None:
        where = ("--run_dir", tmp_path / name, "--model", tmp_path / model)
        result = launch(CONFIGS / f"{name}.yaml", *SMALL, *map(str, (*where, *words)))
        assert result.returncode == 0, result.stdout

    start = tmp_path / "closeups-init"
    run(mmchat, "vision", "init", CONFIGS / "tower.json", *classes, "--out", start, cwd=ROOT)
    train("closeups", "closeups-init", "--data.path", data / "closeups.json")
    enlarged = ("--image-size", 64, "--out", tmp_path / "tower-init")
    run(mmchat, "vision", "init", tmp_path / "closeups" / "model", *classes, *enlarged, cwd=ROOT)
    images = ("--data.path", data / "closeups.json", "--validation.path", data / "closeups.json")
    train("tower", "tower-init", *images)
    parts = ("--language", CONFIGS / "language.json", "--tokenizer", tmp_path / "tokenizer", "--system", "")
    parts += ("--vision", tmp_path / "tower" / "model", "--projector", "mlp2x_gelu")
    run(mmchat, "init", *parts, "--out", tmp_path / "init", cwd=ROOT)
    train("projector", "init", "--data.path", data / "statements.json")
    conversations = ("--data.path", data / "train.json", "--validation.path", data / "dev.json")
    train("sft", "projector/model", *conversations)

    assert all(row["loss"] > 0 for name in ("closeups", "tower", "projector", "sft") for row in metrics(tmp_path / name)
               if "loss" in row)  # fmt: skip
    assert MMChatProcessor.from_pretrained(tmp_path / "sft" / "model").image_tokens == 64


def test_its_shape_is_one_that_other_programs_have():
    """Square images, bicubic; heads of 64; full attention; GELU by tanh."""
    tower = json.loads((CONFIGS / "tower.json").read_text())
    language = json.loads((CONFIGS / "language.json").read_text())
    assert tower["family"] == "siglip" and tower["preprocessing"]["resample"] == "bicubic"
    assert tower["backbone"]["hidden_act"] == "gelu_pytorch_tanh"
    assert not tower["backbone"]["vision_use_head"]
    assert tower["backbone"]["hidden_size"] == 64 * tower["backbone"]["num_attention_heads"]
    assert language["hidden_size"] == 64 * language["num_attention_heads"]
    assert not language["use_sliding_window"]
