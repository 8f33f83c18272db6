"""Weights of a trained projector for a new assistant: stage 1 of LLaVA is not done again."""

from pathlib import Path

from torch import nn

from mmchat.errors import UserError
from mmchat.pretrained import fill_module
from mmchat.vision.checkpoint_formats.base import rename_key
from mmchat.vision.checkpoint_formats.weight_files import PICKLED, WeightFiles

PREFIXES = {
    "base_model.model.model.mm_projector.": "",
    "model.mm_projector.": "",
    "mm_projector.": "",
    "model.multi_modal_projector.linear_": "hf.",
    "multi_modal_projector.linear_": "hf.",
    "projectors.0.": "",
}
"""Prefix of a projector's keys in LLaVA's original layout, in transformers' and here -> what replaces it."""
NUMBERS = {"hf.1.": "0.", "hf.2.": "2."}
"""transformers' numbers of the two linear layers -> ours."""


def load_projector(projector: nn.Module, source: Path) -> None:
    """Fill a projector, in its own dtype, with the weights in a file such as LLaVA's `mm_projector.bin`.

    Args:
        projector: Changed in place.
        source: A file of torch or safetensors that holds a projector alone.

    Raises:
        UserError: There is no such file, or its weights do not fit the projector.
    """
    if not source.is_file() or source.suffix not in (".safetensors", *PICKLED):
        raise UserError(
            f"projector weights {source}: expected a file with a projector alone ({', '.join(PICKLED)}, .safetensors)"
        )
    dtype = next(projector.parameters()).dtype
    tensors = WeightFiles(source).tensors()
    state = {
        rename_key(rename_key(key, PREFIXES, {}), NUMBERS, {}): tensor.to(dtype) for key, tensor in tensors.items()
    }
    fill_module(projector, state, source)
