"""Checks of what `mmchat clip` opens, before torch is imported."""

from pathlib import Path

from mmchat.hub import check_exists
from mmchat.model_kinds import DUAL_ENCODER, kind_of


def check_dual_encoder(source: str | Path) -> None:
    """Check that a dual encoder exists, and that a directory of mmchat's holds one. Others' are checked when opened.

    Raises:
        UserError: It does not exist, or is another kind of model.
    """
    check_exists(source, "dual encoder")
    if kind_of(source) is not None:
        DUAL_ENCODER.check_complete(source)
