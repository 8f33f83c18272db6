"""`mmchat env`: what a bug report needs to know about an installation."""

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mmchat.command_line.quiet import quiet_libraries

EXAMPLE = "mmchat env"
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "deepspeed",
    "peft",
    "safetensors",
    "huggingface-hub",
    "numpy",
    "pillow",
    "datasets",
    "pyarrow",
    "scipy",
    "scikit-learn",
    "gradio",
    "tensorboard",
    "wandb",
)
SETTINGS = (
    *(
        "DS_ACCELERATOR",
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
        "GLIBC_TUNABLES",
    ),
    *("MMCHAT_CPU_SETTINGS", "HF_HUB_OFFLINE"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_details("Paste the output into a bug report. It names no user, host or path.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> None:
    quiet_libraries()
    values = environment()
    if arguments.json:
        print(json.dumps(values, indent=2))
        return
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name + ':':{width + 1}} {value}")


def environment() -> dict[str, Any]:
    """Name -> value; "not installed" for a missing package."""
    from mmchat import __version__

    return {
        "mmchat": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: installed_version(name) for name in PACKAGES},
        **devices(),
        "cpu count": os.cpu_count(),
        "deepspeed accelerator": accelerator(),
        **{name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def devices() -> dict[str, Any]:
    import torch

    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(index) for index in range(count)]
    memory = [torch.cuda.get_device_properties(index).total_memory / 2**30 for index in range(count)]
    return {
        "cuda": torch.version.cuda or "torch was built without CUDA",
        "cudnn": torch.backends.cudnn.version() or "none",
        "devices": [f"{name}, {size:.0f} GiB" for name, size in zip(names, memory, strict=True)] or "cpu only",
    }


def accelerator() -> str:
    try:
        from deepspeed.accelerator import get_accelerator

        return get_accelerator().device_name()
    except Exception as error:  # a broken installation is what this command is asked about
        return f"cannot be determined: {type(error).__name__}: {error}"
