"""vLLM as a program to compare with, in an interpreter of its own."""

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

from mmchat.conversion import foreign_python
from mmchat.errors import UserError

PYTHON_VARIABLE = "MMCHAT_VLLM_PYTHON"
"""Environment variable that names an interpreter with vLLM. Without it, the running one is used if it has vLLM."""
SCRIPT = "scripts/foreign/vllm.sh"
PROGRAM = Path(__file__).with_name("vllm_program.py")
SHOWN = 2000
"""Characters of a program's last output that an error message shows."""


def require_python() -> str:
    """An interpreter with vLLM.

    Raises:
        UserError: There is none; or `MMCHAT_VLLM_PYTHON` names one without it.
    """
    found = foreign_python.find_python("vllm", PYTHON_VARIABLE, SCRIPT)
    if found is None:
        raise UserError(
            f"vLLM is not installed here; set {PYTHON_VARIABLE} to an interpreter that has it (in a checkout of "
            f"mmchat, `bash {SCRIPT} DIR` makes one, DIR/bin/python)"
        )
    return found


def ask_vllm(
    python: str, directory: Path, conversations: list[list[dict[str, Any]]], max_tokens: int, context: int, images: int
) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """Greedy answers of vLLM in fp32, and the inputs that transformers' processor makes in its environment.

    Args:
        python: An interpreter with vLLM.
        directory: What was exported.
        conversations: Messages in OpenAI's dialect, images as data URIs.
        max_tokens: Length of the answers; end tokens are never chosen.
        context: Context length, in tokens.
        images: Most images of a conversation.

    Returns:
        `version`; `processor`, its class and version; `answers`, each with `prompt` (token ids) and `tokens` (those of
        the answer). Then the inputs of each conversation.

    Raises:
        UserError: vLLM does not open the directory or does not answer.
    """
    with TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.safetensors")
        request = {
            "model": str(directory),
            "conversations": conversations,
            "max_tokens": max_tokens,
            "context": context,
            "images": images,
            "inputs": str(inputs),
        }
        done = subprocess.run([python, str(PROGRAM)], input=json.dumps(request), capture_output=True, text=True)
        if done.returncode or not done.stdout:
            raise UserError(
                f"vLLM does not answer from what was exported; its last lines: {done.stderr.strip()[-SHOWN:]}"
            )
        made: list[dict[str, torch.Tensor]] = [{} for _ in conversations]
        for key, tensor in load_file(inputs).items():
            number, _, name = key.partition(".")
            made[int(number)][name] = tensor
    return json.loads(done.stdout), made
