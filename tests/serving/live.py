"""Live servers on free ports, over an assistant without a model."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread

import httpx
import uvicorn
from PIL import Image

from mmchat.command_line.listening import listen
from mmchat.serving.app import build_app
from mmchat.serving.server import CONNECTION_OPTIONS
from mmchat.serving.service import Service
from mmchat.serving.settings import ServeSettings
from tests.serving.fakes import FakeAssistant, until

MODEL = "tiny"


@dataclass
class Live:
    """A running server."""

    url: str
    service: Service
    assistant: FakeAssistant
    client: httpx.Client

    def chat(self, content="Hello", headers=None, **options) -> httpx.Response:
        """Ask one question."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **options}
        return self.client.post("/v1/chat/completions", json=body, headers=headers)


@contextmanager
def running(assistant: FakeAssistant | None = None, wait: bool = True, **options) -> Iterator[Live]:
    """A server in a thread of this process. Options are those of `ServeSettings`."""
    assistant = assistant or FakeAssistant()
    listening = listen("127.0.0.1", 0, CONNECTION_OPTIONS)
    service = Service(ServeSettings(MODEL, **options), lambda: assistant)
    config = uvicorn.Config(build_app(service), http="h11", ws="none", lifespan="on", log_level="warning")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            assert until(lambda: server.started)
            assert not wait or until(lambda: service.state == "ready")
            yield Live(url, service, assistant, client)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def data_uri(colour: str, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> str:
    """An image of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def image_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> dict:
    return {"type": "text", "text": text}
