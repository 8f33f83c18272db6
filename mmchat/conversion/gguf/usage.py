"""How llama.cpp opens the two files of an assistant, for their model card."""

from mmchat.conversion.card import Usage

_TEXT = """\
`model.gguf` is the language model, `mmproj.gguf` the vision tower and the projector. llama.cpp in Python
(`pip install xllamacpp`):
```python
import base64
from pathlib import Path

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = "path/of/this/directory/model.gguf"
params.mmproj.path = "path/of/this/directory/mmproj.gguf"
{forced}server = xllamacpp.Server(params)  # also an HTTP server, at server.listening_address
image = base64.b64encode(Path("image.png").read_bytes()).decode()
content = [
    {{"type": "image_url", "image_url": {{"url": f"data:image/png;base64,{{image}}"}}}},
    {{"type": "text", "text": "What is this?"}},
]
request = {{"messages": [{{"role": "user", "content": content}}], "temperature": 0, "max_tokens": 64}}
answer = server.handle_chat_completions(request)
print(answer["choices"][0]["message"]["content"])
```
Programs built on llama.cpp take the same two files."""


def llamacpp_usage(image_tokens: int | None) -> Usage:
    """The card's text.

    Args:
        image_tokens: Slots per image, if llama.cpp would resize images to another number of them.
    """
    forced = f"params.image_min_tokens = params.image_max_tokens = {image_tokens}\n" if image_tokens else ""
    return Usage("llama.cpp", _TEXT.format(forced=forced))
