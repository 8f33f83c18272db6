"""What is said of a label, so that it reads like a caption. No torch here."""

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
"""The seven of 80 that did nearly as well as all in openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb."""


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises UserError for a prompt without a place for the label."""
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise UserError(f"prompt {prompt!r} must hold {{}} once, where the label goes")


def prompted(labels: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """Every prompt of the first label, then of the next."""
    return [prompt.replace("{}", label) for label in labels for prompt in prompts]
