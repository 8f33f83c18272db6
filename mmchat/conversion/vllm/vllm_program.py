"""Answers of vLLM to a few conversations, and what its processor makes of them. Run as a program by an interpreter that
has vLLM; imports no mmchat.

Reads one JSON object from standard input and writes one to standard output. `ask_vllm` (`vllm_process.py`) describes
both.
"""

import base64
import io
import json
import os
import sys

# vLLM reads these when it is imported. Those of the CPU build do nothing elsewhere.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever vLLM prints is no part of the answer
    request = json.load(sys.stdin)
    os.environ |= SETTINGS
    processor = process(request)
    reply = {"processor": processor, **answer(request)}
    json.dump(reply, out)
    out.close()


def process(request):
    """Write what transformers' processor makes of each conversation to a file; returns its class."""
    import safetensors.torch
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(request["model"])
    tensors = {}
    for number, messages in enumerate(request["conversations"]):
        made = processor.apply_chat_template(
            [with_images(message) for message in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        tensors |= {f"{number}.{name}": tensor.contiguous() for name, tensor in made.items()}
    safetensors.torch.save_file(tensors, request["inputs"])
    return f"{type(processor).__name__} of transformers {transformers.__version__}"


def with_images(message):
    """A message of OpenAI's dialect as transformers takes it."""
    parts = []
    for part in message["content"]:
        if part["type"] == "image_url":
            part = {"type": "image", "image": opened(part["image_url"]["url"])}
        parts.append(part)
    return {**message, "content": parts}


def opened(url):
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def answer(request):
    """vLLM's greedy answers of exactly `max_tokens` tokens, in fp32."""
    import vllm

    llm = vllm.LLM(
        request["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=request["context"],
        limit_mm_per_prompt={"image": request["images"]},
        skip_mm_profiling=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    count = request["max_tokens"]
    greedy = vllm.SamplingParams(temperature=0, max_tokens=count, min_tokens=count)
    answers = []
    for messages in request["conversations"]:
        (output,) = llm.chat(messages, greedy, use_tqdm=False)
        answers.append({"prompt": list(output.prompt_token_ids), "tokens": list(output.outputs[0].token_ids)})
    return {"version": vllm.__version__, "answers": answers}


if __name__ == "__main__":
    main()
