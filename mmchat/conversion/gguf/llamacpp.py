"""llama.cpp as a program to compare with: through xllamacpp, in an interpreter of its own."""

import json
import subprocess
from pathlib import Path
from typing import Any

from mmchat.conversion import foreign_python

MODEL_FILE = "model.gguf"
MMPROJ_FILE = "mmproj.gguf"
PYTHON_VARIABLE = "MMCHAT_LLAMACPP_PYTHON"
"""Environment variable that names an interpreter with xllamacpp. Without it, the running one is used if it has it."""
PROGRAM = Path(__file__).with_name("llamacpp_program.py")


def find_python() -> str | None:
    """An interpreter with xllamacpp, or None; see `foreign_python.find_python`."""
    return foreign_python.find_python("xllamacpp", PYTHON_VARIABLE, "scripts/foreign/llamacpp.sh")


def ask_llamacpp(
    python: str,
    directory: Path,
    conversations: list[dict[str, Any]],
    max_tokens: int,
    context: int,
    image_tokens: int | None = None,
    never: list[int] | None = None,
    texts: list[str] | None = None,
) -> dict[str, Any]:
    """Greedy answers of llama.cpp, in f32 and on the CPU.

    Args:
        python: An interpreter with xllamacpp.
        directory: Holds both files.
        conversations: `messages` in OpenAI's dialect with images as data URIs, and `images`: the same as base64.
        max_tokens: Longest answer, in tokens.
        context: Context length, in tokens.
        image_tokens: Slots per image, for types that would resize images otherwise.
        never: Tokens that an answer never has.
        texts: Texts to tokenize.

    Returns:
        `version`; `answers`, each with `prompt` (token ids without images), `prompt_tokens` (their number, with images)
        and `tokens` (ids of the answer, -1 after its end); `texts`, their token ids.

    Raises:
        RuntimeError: llama.cpp cannot read the files, or refuses a request.
    """
    request = {
        "model": str(directory / MODEL_FILE),
        "mmproj": str(directory / MMPROJ_FILE),
        "conversations": conversations,
        "max_tokens": max_tokens,
        "context": context,
        "image_tokens": image_tokens,
        "texts": texts or [],
        "never": never or [],
    }
    done = subprocess.run([python, str(PROGRAM)], input=json.dumps(request), capture_output=True, text=True)
    if done.returncode or not done.stdout:
        raise RuntimeError(f"llama.cpp cannot use the files in {directory}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)
