"""What `mmchat train -h` and `--help` print: the usual keys of a config, or all of them."""

import shutil
import textwrap

from mmchat.command_line.settings_help import WIDEST, settings_help, table_of_keys

USAGE = """\
usage: mmchat train CONFIG [--ranks N] [--key value ...]
       deepspeed scripts/train.py CONFIG [--key value ...]"""
MEANING = """\
Train as a YAML file says. Any of its keys can be overridden, nested ones with a dot.

  example: mmchat train sft.yaml --steps 20 --run_dir runs/try"""
ENDS = """\
To stop: Ctrl-C, or SIGTERM to the launcher or to a rank. All ranks finish the step, save a checkpoint, say how to
resume (--resume), and exit with 130 (Ctrl-C) or 143 (SIGTERM, or their launcher died). A second Ctrl-C ends at once.
`mmchat train` and `deepspeed` return that exit status, `torchrun` returns 1. Other exit statuses: 0 done; 2 a mistake
in the config or data, a full disk, or a step at which monitoring.stability stops the run."""
RANKS = "--ranks N: processes, one for each GPU; default: all GPUs, without a GPU one process"
USUAL_KEYS = (
    "run_dir",
    "model",
    "data.path",
    "data.image_root",
    "trainable.NAME",
    "optimizer.lr",
    "epochs",
    "batch_size",
    "micro_batch_size",
    "resume",
)
"""What most people override."""


def help_text() -> str:
    """All keys, in groups."""
    from mmchat.training.config import RunConfig

    keys = f"Keys of CONFIG, each with [type; default]:\n\n{settings_help(RunConfig)}"
    return "\n\n".join([USAGE, *map(_filled, (MEANING, RANKS, ENDS)), keys])


def short_help_text() -> str:
    """The usual keys."""
    from mmchat.training.config import RunConfig

    keys = f"Usual keys of CONFIG, each with [type; default]:\n{table_of_keys(RunConfig, USUAL_KEYS)}"
    more = "`mmchat train --help` lists all keys, `mmchat recipe list` configs to start from."
    return "\n\n".join([USAGE, _filled(MEANING), _filled(RANKS), keys, _filled(more)])


def _filled(text: str) -> str:
    """Paragraphs filled to the terminal's width; indented ones stay as they are."""
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    paragraphs = text.split("\n\n")
    return "\n\n".join(one if one.startswith(" ") else textwrap.fill(one, width) for one in paragraphs)
