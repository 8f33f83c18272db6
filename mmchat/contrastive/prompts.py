"""Prompt templates that turn labels into captions, for zero-shot classification. No torch."""

from collections.abc import Sequence

from mmchat.errors import UserError

PROMPTS = ("a photo of a {}.",)
"""CLIP's default (Radford et al. 2021, arXiv:2103.00020, section 3.1.4)."""
GENERAL_PROMPTS = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""Seven of CLIP's 80 templates, nearly as good as all (openai/CLIP,
notebooks/Prompt_Engineering_for_ImageNet.ipynb)."""


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise UserError unless every prompt holds `{}` once."""
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise UserError(f"prompt {prompt!r} must hold {{}} once, in place of the label")


def prompted(labels: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """All prompts of the first label, then all of the next."""
    return [prompt.replace("{}", label) for label in labels for prompt in prompts]
