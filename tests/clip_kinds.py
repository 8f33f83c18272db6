"""A tiny dual encoder and labelled images, for tests of every room that uses one."""

from pathlib import Path

import torch

from mmchat.contrastive.directory import init_clip

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}


def write_clip(tower, tokenizer: Path, out: Path) -> Path:
    """A saved dual encoder; its weights are spread wide, so that different inputs give visibly different vectors."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15, generator=generator)
    torch.manual_seed(0)
    init_clip(tower, TEXT, str(tokenizer), 16, "pooled", out)
    return out


def write_classes(folder: Path, image, sizes: dict[str, int]) -> Path:
    """A folder for each class with so many random images."""
    for number, (name, count) in enumerate(sizes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image(100 * number + index).save(folder / name / f"{index}.png")
    return folder
