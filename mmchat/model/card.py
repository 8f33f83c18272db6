"""The README.md of a directory that people share: what it is, what it was made of, and code that opens it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmchat.auto import MMChatConfig, MMChatForConditionalGeneration
from mmchat.conversation import SlotTokens
from mmchat.errors import UserError
from mmchat.files import write_text
from mmchat.front_matter import CARD, front_matter, with_licences
from mmchat.hub import hub_name

_MODEL = """\
{head}
# Vision-language assistant

{parts}

The weights derive from those of the language model and of the towers; their licences apply.

## Use
```python
import mmchat.auto  # registers the model's classes with transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("path/of/this/directory")
processor = AutoProcessor.from_pretrained("path/of/this/directory")
content = [{{"type": "image", "path": "image.png"}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True, tokenize=True, return_dict=True
)
output = model.generate(**inputs, max_new_tokens=64)
print(processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
`mmchat chat path/of/this/directory --image image.png "What is this?"` asks from a terminal.
"""

_ADAPTER = """\
---
library_name: peft
tags: [mmchat, lora, image-text-to-text]
{front}---

# LoRA adapter of a vision-language assistant

Trained with mmchat on the model `{base}`, which it needs. It is PEFT's format and complete: {full}.

The base's weight files and their SHA-256:

{hashes}

```python
import mmchat.auto  # registers the model's classes with transformers
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained({arguments})
model = PeftModel.from_pretrained(base, "path/of/this/directory")
processor = AutoProcessor.from_pretrained("path/of/this/directory")
```

`mmchat merge DIR --base {option} --out MERGED` writes the merged model. It refuses another base.
"""


_USE = "## Use\n"


@dataclass
class ModelCard:
    """The README.md of a model directory.

    Attributes:
        model: The model.
        data: Names of the data sources of its training, if it was trained.
    """

    model: MMChatForConditionalGeneration
    data: Sequence[str] = ()

    def save_pretrained(self, directory: Path) -> None:
        """Write it into a directory."""
        write_text(directory / CARD, self.text())

    def text(self) -> str:
        """The Markdown text."""
        data = ", ".join(f"`{name}`" for name in self.data)
        return _MODEL.format(
            head=front_matter(assistant_head(self.model.config, "mmchat")),
            parts=parts_table(self.model, {"training data": data}),
        )


def assistant_head(config: MMChatConfig, library: str) -> dict[str, Any]:
    """Values for the head of an assistant's card (`front_matter`).

    Args:
        config: The assistant's config.
        library: What opens it.
    """
    bases = base_models(config)
    return {
        "library_name": library,
        "pipeline_tag": "image-text-to-text",
        "tags": ["mmchat", "vision-language"],
        "base_model": bases[0] if len(bases) == 1 else bases,
    }


def base_models(config: MMChatConfig) -> list[str]:
    """Names on the hub of what an assistant was made of, as far as they are known."""
    return list(dict.fromkeys(filter(None, [config.text_config.name_or_path, *config.base_models])))


def parts_table(model: MMChatForConditionalGeneration, more: Mapping[str, str] | None = None) -> str:
    """A Markdown table of what an assistant consists of.

    Args:
        model: The assistant.
        more: Rows that follow; those without a text are left out.
    """
    config = model.config
    rows = {
        "language model": f"{config.text_config.model_type}, {_size(model.language_model)} parameters",
        **_tower_rows(model),
        "image slots": f"{model.image_tokens} per view: `{SlotTokens(**config.slots).group}`",
        "conversation template": f"`{config.template}`",
        "base models": with_licences(base_models(config)),
        **(more or {}),
    }
    return _table(("part", "what it is"), [(name, text) for name, text in rows.items() if text])


def _tower_rows(model: MMChatForConditionalGeneration) -> dict[str, str]:
    towers = zip(model.towers, model.specs, model.config.projectors, strict=True)
    return {
        f"vision tower {number}": f"{tower.config.family}, {_size(tower)} parameters, {spec.image_size} pixels, fit "
        f"`{spec.preprocessing.fit}`, projector `{projector}`"
        for number, (tower, spec, projector) in enumerate(towers)
    }


def source_names(names: Sequence[str]) -> list[str]:
    """Names of sources without folders: a source without a name of its own is called by its path."""
    return [Path(name).stem for name in names]


def _size(module: Any) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"| {first} | {second} |" for first, second in [head, ("---", "---"), *rows])


def write_scores(directory: Path, data: str, scores: Mapping[str, float]) -> None:
    """Put scores into the card of a model directory. Those of the same data replace earlier ones.

    Args:
        directory: The directory.
        data: Name of the questions.
        scores: As in `scores.json`: each score, and under `NAME/blind` and `NAME/questions` what belongs to it.

    Raises:
        UserError: It has no card that mmchat wrote.
    """
    card = directory / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if _USE not in text:
        raise UserError(f"{card} is no model card that mmchat wrote, so the scores have no place there")
    rows = "\n".join(
        f"| `{name}` | {scores[f'{name}/questions']:,} | {scores[name]:.1%} | {scores[f'{name}/blind']:.1%} |"
        for name in scores
        if f"{name}/questions" in scores
    )
    section = (
        f"## Scores on `{data}`\nExact match. Blind: the same questions without the right image (`mmchat eval`).\n\n"
        f"| questions | number | right | blind |\n|---|---|---|---|\n{rows}\n\n"
    )
    earlier = re.compile(rf"^## Scores on `{re.escape(data)}`\n.*?(?=^## )", re.DOTALL | re.MULTILINE)
    text = earlier.sub("", text)
    write_text(card, text.replace(_USE, section + _USE, 1))


def adapter_card(base: dict[str, Any], modules: Sequence[str]) -> str:
    """The README.md of an adapter directory.

    Args:
        base: The content of its `base.json`.
        modules: Names of the modules that were trained in full.
    """
    names = ", ".join(f"`{name}`" for name in modules)
    named = base["model"]
    if match := hub_name(named):
        repo, revision = match["repo"], match["revision"]
        front, option = f"base_model: {repo}\n", named
        arguments = f'"{repo}", revision="{revision}"' if revision else f'"{repo}"'
    else:
        repo = PurePosixPath(named).name
        front, option, arguments = "", f"path/of/{repo}", f'"path/of/{repo}"'
    return _ADAPTER.format(
        base=repo,
        front=front,
        option=option,
        arguments=arguments,
        full=f"it also holds the modules that were trained in full, {names}" if names else "nothing else was trained",
        hashes="\n".join(f"- `{file}`: `{digest}`" for file, digest in base["sha256"].items()),
    )
