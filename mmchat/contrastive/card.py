"""The README.md of an exported dual encoder."""

from collections.abc import Sequence
from pathlib import Path

from mmchat.contrastive.dual_encoder import DualEncoder
from mmchat.front_matter import CARD, front_matter, licence, with_licences

_CARD = """\
{head}
# Dual encoder of images and texts

Exported with mmchat: transformers' {name} opens it without mmchat.

| part | what it is |
| --- | --- |
{rows}

The weights derive from those of both towers; their licences apply.

## Use
```python
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

directory = "path/of/this/directory"
model = AutoModel.from_pretrained(directory)
images = AutoImageProcessor.from_pretrained(directory)(Image.open("image.png").convert("RGB"), return_tensors="pt")
texts = AutoTokenizer.from_pretrained(directory)(["a cat", "a dog"], return_tensors="pt", {padding})
print(model(**images, **texts).logits_per_image)
```
"""


def export_card(model: DualEncoder, name: str, source: str | Path, bases: Sequence[str]) -> str:
    """The Markdown text.

    Args:
        model: The dual encoder.
        name: The class of transformers that opens what was exported.
        source: Where it was opened. The licence is the one that the card there names.
        bases: Names on the hub of what it was made of.
    """
    config, tower = model.config, model.towers[0]
    rows = {
        "vision tower": f"{tower.config.family}, {tower.spec.image_size} pixels, fit `{tower.spec.preprocessing.fit}`",
        "text encoder": f"{config.text_config.model_type}, at most {config.context_length} tokens",
        "embeddings": f"{config.projection_dim} numbers",
        "base models": with_licences(bases),
    }
    head = {
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["mmchat"],
        "base_model": bases[0] if len(bases) == 1 else list(bases),
        **licence(Path(source) / CARD),
    }
    padding = f'padding="max_length", max_length={config.context_length}' if config.sigmoid else "padding=True"
    return _CARD.format(
        head=front_matter(head),
        name=name,
        rows="\n".join(f"| {part} | {what} |" for part, what in rows.items() if what),
        padding=padding,
    )
