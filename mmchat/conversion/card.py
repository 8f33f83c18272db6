"""The README.md of an exported assistant: what it is, what it was made of, and how its program opens it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mmchat.auto import MMChatForConditionalGeneration
from mmchat.files import write_text
from mmchat.front_matter import CARD, front_matter, licence
from mmchat.model.card import assistant_head, parts_table

_CARD = """\
{head}
# Vision-language assistant

Trained with mmchat and exported: {description} opens it without mmchat.

{parts}

The weights derive from those of the language model and of the towers; their licences apply.

## Use
{text}
"""


@dataclass(frozen=True)
class Usage:
    """How a program opens what was exported.

    Attributes:
        library: `library_name` of the card, as the hub knows it.
        text: Markdown with code. The directory is called path/of/this/directory.
    """

    library: str
    text: str


@runtime_checkable
class OwnUsage(Protocol):
    """A format that is opened by another program than transformers."""

    def usage(self, model: MMChatForConditionalGeneration) -> Usage:
        """How that program opens the model."""


TRANSFORMERS = Usage(
    "transformers",
    """\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("path/of/this/directory")
processor = AutoProcessor.from_pretrained("path/of/this/directory")
image = Image.open("image.png").convert("RGB")
content = [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
output = model.generate(**inputs, max_new_tokens=64)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
transformers makes some of its processors (InternVL's, LLaVA-OneVision's, SmolVLM's) only where torchvision is
installed.""",
)


def write_card(directory: Path, model: MMChatForConditionalGeneration, target: Any, source: Path) -> None:
    """Write the card of an exported assistant.

    The licence is the one that the card of `source` names, which the user wrote there.

    Args:
        directory: What was exported.
        model: The assistant.
        target: Its format, an `ExportFormat`.
        source: The model directory.
    """
    usage = target.usage(model) if isinstance(target, OwnUsage) else TRANSFORMERS
    head = assistant_head(model.config, usage.library) | licence(source / CARD)
    text = _CARD.format(
        head=front_matter(head), description=target.description, parts=parts_table(model), text=usage.text
    )
    write_text(directory / CARD, text)
