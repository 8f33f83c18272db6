"""`deepspeed scripts/train.py CONFIG` and `mmchat train CONFIG`."""

import os
import subprocess
import sys
from pathlib import Path

from mmchat.cli.errors import reporting
from mmchat.cli.quiet import quiet_libraries
from mmchat.errors import UserError
from mmchat.settings import describe, load_settings

USAGE = """usage: deepspeed scripts/train.py CONFIG [--key value ...]
       mmchat train CONFIG [--ranks N] [--key value ...]

Train as a YAML file says; any of its keys can be overridden, nested ones with a dot.

  example: deepspeed --num_accelerators 1 scripts/train.py configs/quickstart/sft.yaml --steps 20 --run_dir runs/try

keys (type, default):
"""


def help_text() -> str:
    from mmchat.training.config import RunConfig

    rows = [(".".join(path), *rest) for path, *rest in describe(RunConfig)]
    width = max(len(key) for key, *_ in rows)
    lines = []
    for key, kind, default, meaning in rows:
        kind = kind.replace("mmchat.training.trainability.", "").replace("pathlib.", "")
        lines.append(f"  --{key:{width}} {meaning}  [{kind}; {default}]")
    return USAGE + "\n".join(lines)


def split_arguments(words: list[str]) -> tuple[Path | None, list[str]]:
    """CONFIG and the rest; launchers put `--local_rank=N` in front of CONFIG."""
    for index, word in enumerate(words):
        if not word.startswith("-"):
            return Path(word), words[:index] + words[index + 1 :]
        if not word.startswith(("--local_rank=", "--local-rank=")):
            break
    return None, words


def train_main(words: list[str] | None = None) -> None:
    """One rank of a run; what the launcher starts."""
    words = sys.argv[1:] if words is None else words
    with reporting(rank=int(os.environ.get("RANK", "0"))):
        if {"-h", "--help"} & set(words):
            print(help_text())
            return
        path, overrides = split_arguments(words)
        if path is None:
            raise UserError("expected CONFIG first, a YAML file such as configs/quickstart/sft.yaml (see --help)")
        quiet_libraries()
        from mmchat.training.config import RunConfig

        config = load_settings(RunConfig, path, overrides)

        from mmchat.training import distributed
        from mmchat.training.run import run

        distributed.start()
        try:
            run(config)
        finally:
            distributed.stop()


def launch_main(words: list[str]) -> int:
    """`mmchat train`: the same through DeepSpeed's launcher, on the devices there are, or on `--ranks N`."""
    with reporting():
        if not words or {"-h", "--help"} & set(words):
            print(help_text())
            return 0
        words = list(words)
        chosen = []
        if "--ranks" in words:
            at = words.index("--ranks")
            if at + 1 >= len(words) or not words[at + 1].isdigit():
                raise UserError("--ranks needs a number")
            chosen = ["--num_accelerators", words[at + 1]]
            del words[at : at + 2]
        import torch

        from mmchat.training.distributed import free_port

        if not chosen and not torch.cuda.is_available():
            chosen = ["--num_accelerators", "1"]
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", *chosen]
        launcher += ["--master_port", str(free_port()), "--module", "mmchat.cli.train"]
        return subprocess.run([*launcher, *words], check=False).returncode


if __name__ == "__main__":
    train_main()
