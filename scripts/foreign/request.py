"""Write a question about an image as a request of OpenAI's dialect, which vLLM, llama.cpp and transformers serve take.

    python scripts/foreign/request.py image.png "What is this?" --model NAME --out request.json
    curl -s http://localhost:8000/v1/chat/completions -H "Content-Type: application/json" -d @request.json

The answer is greedy. Imports no mmchat.
"""

import argparse
import base64
import json
import mimetypes
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument("question", help="text after the image")
    parser.add_argument("--model", default="model", metavar="NAME", help="what the server calls the model")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="longest answer, in tokens")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    arguments = parser.parse_args()
    kind = mimetypes.guess_type(arguments.image)[0] or "image/png"
    data = base64.b64encode(arguments.image.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}},
        {"type": "text", "text": arguments.question},
    ]
    request = {
        "model": arguments.model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": arguments.max_tokens,
    }
    arguments.out.write_text(json.dumps(request), encoding="utf-8")


if __name__ == "__main__":
    main()
