"""The workload of both variants: a model with random weights, conversations with images, and the samples encoded.

Text lengths are those of conversations about images: lognormal, 40 to 600 tokens, 197 on average, 57 % supervised. Each
word is one token, so that lengths can be chosen.
"""

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmchat.data.dataset import MixtureDataset
from mmchat.data.quarantine import Quarantine
from mmchat.model.assembly import assemble
from mmchat.training.config import load_run_config
from mmchat.training.dataloader import TrainingDataLoader
from mmchat.training.objectives.assistant import AssistantObjective
from mmchat.vision import TowerConfig, build_tower
from side_by_side.model_shapes import Shape
from side_by_side.random_images import draw_clouds
from side_by_side.reference_run import ROW_TOKENS

SLOT_TOKENS = 3  # <imgpad>, <img> and </img>, which `assemble` adds to the tokenizer
SPECIAL = ["<unk>", "<s>", "</s>"]
IMAGE = (640, 480)
FRAME = 5
"""Text tokens of a conversation that are neither question nor answer: <s>, the roles, the image placeholder."""
SHORTEST, LONGEST, MEAN, SIGMA, SUPERVISED = 40, 600, 197, 0.7, 0.57
AHEAD = 8
"""Steps of data after the last one. They keep the data worker busy until the measured steps end. Also, the packed A
takes slightly more than a batch per step."""

TRAINABLE = {
    "sft": {"towers": "frozen", "projectors": "full", "language_model": "full"},
    "pretrain": {"towers": "frozen", "projectors": "full", "language_model": "frozen"},
}


def write_workload(
    folder: Path, shape: Shape, stage: str, batch: int, steps: int, seed: int, checkpointing: bool = False
) -> None:
    """Write `model/`, `records.json` with its images, `run.yaml` for B, and `samples.pt` for A.

    samples.pt holds the samples in the order of B's run: input_ids and labels int64[L], pixel_values
    float32[1, 3, H, W].
    """
    write_tokenizer(folder / "tokenizer", shape.language["vocab_size"] - SLOT_TOKENS)
    write_model(folder, shape)
    write_records(folder, (steps + AHEAD) * batch, shape.language["vocab_size"], seed)
    write_config(folder / "run.yaml", stage, batch, steps + AHEAD, seed, checkpointing)
    write_samples(folder, steps + AHEAD)


def write_tokenizer(folder: Path, size: int) -> None:
    """A word-level tokenizer of `size` tokens."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *map(_word, range(size - len(SPECIAL)))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)


def _word(number: int) -> str:
    return f"w{number}"


def write_model(folder: Path, shape: Shape) -> None:
    language = folder / "language.json"
    language.write_text(json.dumps(shape.language))
    tower = build_tower(TowerConfig("clip_vit", shape.tower, layer=-2))
    tokenizer = str(folder / "tokenizer")
    model, processor = assemble(str(language), [tower], "mlp2x_gelu", "vicuna_v1", system="", tokenizer=tokenizer)
    model.save_pretrained(folder / "model", max_shard_size="1TB")
    processor.save_pretrained(folder / "model")


def write_records(folder: Path, count: int, vocabulary: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = text_lengths(count, rng)
    words = vocabulary - SLOT_TOKENS - len(SPECIAL)

    def text(tokens: int) -> str:
        return " ".join(map(_word, rng.integers(0, words, tokens)))

    records = []
    for number, length in enumerate(lengths):
        answer = round(SUPERVISED * length)
        question = text(length - answer - FRAME)
        turns = [("human", f"<image>\n{question}"), ("gpt", text(answer - 1))]  # </s> is supervised, too
        name = f"{number:05}.jpg"
        draw_clouds(rng, IMAGE).save(folder / name)
        records.append({"id": name, "image": name, "conversations": [{"from": who, "value": v} for who, v in turns]})
    (folder / "records.json").write_text(json.dumps(records))


def text_lengths(count: int, rng: np.random.Generator) -> list[int]:
    """Text tokens of each conversation."""
    drawn = rng.lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, count)
    return np.clip(np.round(drawn), SHORTEST, LONGEST).astype(int).tolist()


def write_config(path: Path, stage: str, batch: int, steps: int, seed: int, checkpointing: bool) -> None:
    values = {
        "run_dir": str(path.parent / "run"),
        "model": str(path.parent / "model"),
        "data": {"path": str(path.parent / "records.json")},
        "trainable": TRAINABLE[stage],
        # The defaults of HF's Trainer, except for the schedule.
        "optimizer": {"lr": 5e-5, "schedule": "constant", "warmup": 0},
        "steps": steps,
        "batch_size": batch,
        "objective": {"packing": {"tokens": ROW_TOKENS}},
        "seed": seed,
        "distributed": {"activation_checkpointing": ["language_model"] if checkpointing else []},
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def write_samples(folder: Path, steps: int) -> None:
    config = load_run_config(folder / "run.yaml", ["--objective.packing", "null"])
    objective = AssistantObjective(config)
    dataloader = TrainingDataLoader(config, objective, Quarantine(folder / "quarantine.jsonl", "stop", True))
    encoded = MixtureDataset(dataloader.mixture, objective.encode, objective.collator.square)
    numbers = [number for step in range(steps) for number in dataloader.order.step(step)]

    def sample(number: int) -> dict[str, torch.Tensor]:
        batch = objective.collator([encoded[number]])
        return {"input_ids": batch.input_ids[0], "labels": batch.labels[0], "pixel_values": batch.pixel_values[0]}

    torch.save([sample(number) for number in numbers], folder / "samples.pt")
