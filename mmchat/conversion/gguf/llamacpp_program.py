"""Answers of llama.cpp to a few requests. Run as a program by an interpreter that has xllamacpp; imports no mmchat.

Reads one JSON object from standard input and writes one to standard output. `ask_llamacpp` (`llamacpp.py`) describes
both.
"""

import json
import os
import sys
import urllib.error
import urllib.request


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever llama.cpp prints is no part of the answer
    request = json.load(sys.stdin)
    import xllamacpp

    server = start(xllamacpp, request)
    address = server.listening_address
    marker = post(address, "/props")["media_marker"]
    answers = [answer(address, marker, asked, request) for asked in request["conversations"]]
    texts = [tokenize(address, text) for text in request["texts"]]
    json.dump({"version": str(xllamacpp.__version__), "answers": answers, "texts": texts}, out)
    out.close()
    os._exit(0)  # the server's threads need no orderly end


def start(xllamacpp, request):
    """A server on a port of the loopback interface, in full precision, on the CPU."""
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = request["model"], request["mmproj"]
    params.n_ctx, params.n_parallel = request["context"], 1
    params.n_gpu_layers, params.mmproj_use_gpu = 0, False
    params.warmup, params.fit_params, params.verbosity = False, False, 0
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if request["image_tokens"]:
        params.image_min_tokens = params.image_max_tokens = request["image_tokens"]
    return xllamacpp.Server(params)


def answer(address, marker, asked, request):
    """Greedy answer to one conversation, and the tokens of its prompt without images."""
    prompt = post(address, "/apply-template", {"messages": asked["messages"]})["prompt"]
    first, *others = prompt.split(marker)
    found = post(
        address,
        "/completion",
        {
            "prompt": {"prompt_string": prompt, "multimodal_data": asked["images"]},
            "n_predict": request["max_tokens"],
            "logit_bias": [[token, False] for token in request["never"]],
            "temperature": 0,
            "top_k": 1,
            "return_tokens": True,
            "cache_prompt": False,
        },
    )
    tokens = found["tokens"] + [-1] * (request["max_tokens"] - len(found["tokens"]))  # stopped at a token of its own
    return {
        "prompt": tokenize(address, first) + [token for text in others for token in tokenize(address, text, False)],
        "prompt_tokens": found["tokens_evaluated"],
        "tokens": tokens,
    }


def tokenize(address, text, add_special=True):
    values = {"content": text, "add_special": add_special, "parse_special": True}
    return post(address, "/tokenize", values)["tokens"]


def post(address, path, values=None):
    data = None if values is None else json.dumps(values).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"llama.cpp refused {path}: {error.read().decode()[:500]}")


if __name__ == "__main__":
    main()
