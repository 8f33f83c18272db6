"""Answers requests with vLLM, continuously. Run as a program by an interpreter that has vLLM; imports no mmchat.

Reads JSON lines from standard input, first `{"model", "slots", "dtype"}`, then requests `{"id", "messages", "images",
"max_tokens", "repeats"}` with images as base64. Writes a JSON line when it is ready and one for each answer: `{"id",
"text", "tokens", "reason"}`, or `{"id", "error"}`.
"""

import base64
import io
import json
import os
import sys
from queue import SimpleQueue
from threading import Thread

# vLLM reads these when it is imported. Those of the CPU build do nothing elsewhere.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever vLLM prints is no part of the answers
    asked = json.loads(sys.stdin.readline())
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    answerer = Answerer(asked, out)
    answerer.send({"ready": True})
    requests: SimpleQueue = SimpleQueue()
    Thread(target=read, args=(requests,), daemon=True).start()
    answerer.run(requests)


def read(requests) -> None:
    """Read requests until the other process ends or closes its end."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


class Answerer:
    """vLLM's engine in this process, stepped here."""

    def __init__(self, asked, out) -> None:
        import torch
        import transformers
        import vllm
        from vllm.sampling_params import RepetitionDetectionParams

        self.out = out
        self.sampling, self.guard = vllm.SamplingParams, RepetitionDetectionParams
        self.processor = transformers.AutoProcessor.from_pretrained(asked["model"])
        llm = vllm.LLM(
            asked["model"],
            dtype=asked["dtype"],
            max_num_seqs=asked["slots"],
            limit_mm_per_prompt={"image": 1},
            enforce_eager=not torch.cuda.is_available(),
            skip_mm_profiling=not torch.cuda.is_available(),
            disable_log_stats=True,
        )
        self.engine = llm.llm_engine

    def run(self, requests) -> None:
        while True:
            while not requests.empty() or not self.engine.has_unfinished_requests():
                self.add(requests.get())
            for output in self.engine.step():
                if output.finished:
                    self.send(answer_of(output))

    def add(self, request) -> None:
        try:
            prompt = self.processor.apply_chat_template(request["messages"], add_generation_prompt=True, tokenize=False)
            images = [opened(data) for data in request["images"]]
            inputs = {"prompt": prompt, "multi_modal_data": {"image": images}}
            # Pieces of less than 8 tokens repeat legitimately, as dots do; a long loop of them is one of 8 tokens, too.
            guard = self.guard(max_pattern_size=64, min_pattern_size=8, min_count=request["repeats"])
            sampling = self.sampling(temperature=0, max_tokens=request["max_tokens"], repetition_detection=guard)
            self.engine.add_request(str(request["id"]), inputs, sampling)
        except ValueError as error:  # what vLLM raises for a prompt that is too long
            self.send({"id": request["id"], "error": str(error)})

    def send(self, message) -> None:
        self.out.write(json.dumps(message) + "\n")
        self.out.flush()


def answer_of(output):
    made = output.outputs[0]
    reason = made.finish_reason if made.finish_reason in ("length", "repetition") else "end"
    return {"id": int(output.request_id), "text": made.text, "tokens": list(made.token_ids), "reason": reason}


def opened(data):
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


if __name__ == "__main__":
    main()
