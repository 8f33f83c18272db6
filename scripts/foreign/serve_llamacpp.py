"""Serve what `mmchat export --to gguf` wrote, through llama.cpp's own server in xllamacpp. Imports no mmchat.

    .venv-llamacpp/bin/python scripts/foreign/serve_llamacpp.py runs/portable/gguf --port 8080

It takes requests of OpenAI's dialect at http://HOST:PORT/v1/chat/completions, and ends with Ctrl-C.
"""

import argparse
import threading
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="holds model.gguf and mmproj.gguf")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--context", type=int, default=0, metavar="N", help="tokens; default: those of the model")
    parser.add_argument("--image-tokens", type=int, metavar="N", help="slots per image, where the export says so")
    arguments = parser.parse_args()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.directory / "model.gguf")
    params.mmproj.path = str(arguments.directory / "mmproj.gguf")
    params.hostnames, params.port, params.n_ctx = [arguments.host], arguments.port, arguments.context
    if arguments.image_tokens:
        params.image_min_tokens = params.image_max_tokens = arguments.image_tokens
    server = xllamacpp.Server(params)
    print(f"llama.cpp (xllamacpp {xllamacpp.__version__}) listens at {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
