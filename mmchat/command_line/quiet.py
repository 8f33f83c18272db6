"""Keeps libraries from printing progress bars and advice on stderr."""

import logging
import os
import sys
import warnings

from mmchat.cpu_settings import has_gpu


def quiet_libraries() -> None:
    """Call before transformers or deepspeed are imported. Imports neither, nor torch."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers has no variable of its own for its bars
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed detects the same, but prints a warning
    # PEFT reads an attribute of transformers by its deprecated name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # DeepSpeed calls collectives by their deprecated names.
    warnings.filterwarnings("ignore", message="`torch.distributed.* is deprecated", category=FutureWarning)
    # torch advises fewer data workers than `workers` of the config, on every rank.
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
    # bitsandbytes advises a package that would fetch kernels from the hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if "transformers" in sys.modules:  # it has read its variables
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
