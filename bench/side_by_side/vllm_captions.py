"""Captions by vLLM, for `bench/generation.py`. Runs in vLLM's own environment and imports no mmchat.

    python vllm_captions.py EXPORTED DTYPE SLOTS < work.json > measured.json

`work.json`: `{"images": [JPEG in base64], "lengths": [...], "prompt": text}`.
"""

import json
import os
import sys
import time

CONTEXT = 512


def main() -> None:
    model, dtype, slots = sys.argv[1], sys.argv[2], int(sys.argv[3])
    # Whatever vLLM prints is no part of the result.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    import vllm

    work = json.load(sys.stdin)
    llm = vllm.LLM(
        model,
        dtype=dtype,
        max_model_len=CONTEXT,
        max_num_seqs=slots,
        limit_mm_per_prompt={"image": 1},
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
    )

    def caption(images: list[str], lengths: list[int]) -> list[list[int]]:
        """Token ids. The last of each stands for the stop token of the others."""
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
                        {"type": "text", "text": work["prompt"]},
                    ],
                }
            ]
            for image in images
        ]
        settings = [
            vllm.SamplingParams(temperature=0, max_tokens=length, min_tokens=length, ignore_eos=True)
            for length in lengths
        ]
        outputs = llm.chat(conversations, settings, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    caption(work["images"][:2], [4, 4])
    begun, cpu = time.perf_counter(), time.process_time()
    ids = caption(work["images"], work["lengths"])
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    json.dump({"ids": ids, "seconds": seconds, "cpu_seconds": cpu, "version": vllm.__version__}, out)
    out.close()


if __name__ == "__main__":
    main()
