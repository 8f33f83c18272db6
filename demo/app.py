"""A chat about images in the browser. Only the user interface; answers come from `mmchat.inference.Generator`."""

import html
import os
import socket
import traceback
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from mmchat.command_line.arguments import HelpFormatter, OneLineParser
from mmchat.command_line.errors import reporting
from mmchat.command_line.quiet import quiet_libraries
from mmchat.errors import UserError
from mmchat.extras import require

if __name__ == "__main__":
    with reporting():
        require("gradio")

# Gradio reads these on import. They turn off requests to other servers and the log of calls.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}

import gradio as gr

STYLE = Path(__file__).with_name("style.css")
EXAMPLE_IMAGES = Path("data/quickstart/heldout")
DESCRIBE, COUNT = "Describe the image.", "How many digits are there?"
EXAMPLE_QUESTIONS = (COUNT, DESCRIBE, "Which digit is drawn largest?", "Which digit is farthest to the left?")
FAILED = {"id": "failed"}  # metadata of an error bubble; it and its question are not part of the history


def build(generator) -> gr.Blocks:
    """Build the page.

    The chat widget is the only record of a conversation: clearing it clears the history.

    Args:
        generator: A `Generator`.
    """

    def submit(message: dict, chat: list[dict]) -> tuple[list[dict], gr.MultimodalTextbox]:
        text = message["text"].strip() or (DESCRIBE if message["files"] else "")
        if not text:
            raise gr.Error("Type a question, or add an image.", title="Nothing to ask", print_exception=False)
        return [*chat, bubble("user", text, message["files"])], message_box(busy=True)

    def submit_example(example: gr.SelectData, chat: list[dict]) -> tuple[list[dict], gr.MultimodalTextbox]:
        return submit({"text": example.value["text"], "files": [file["path"] for file in example.value["files"]]}, chat)

    def answer(chat: list[dict], temperature: float, max_new_tokens: int) -> Iterator[tuple]:
        question, files = read_bubble(chat[-1])
        reply = ""
        try:
            history, images = read_history(chat[:-1])
            options = {"temperature": temperature, "max_new_tokens": max_new_tokens}
            for piece in generator.stream(question, [*images, *files], history, **options):
                reply += piece
                yield [*chat, bubble("assistant", reply)], gr.skip()
            if not reply.strip():
                raise UserError("the model gave an empty answer")
            yield gr.skip(), message_box()
        except Exception as error:
            text = str(error)
            if not isinstance(error, UserError):
                traceback.print_exc()
                text = f"{type(error).__name__}: {error}"
            for file in files:
                text = text.replace(file, Path(file).name)
            retry = {"text": question, "files": files}  # back into the box, to edit and send again
            yield [*chat, bubble("assistant", f"⚠ {text}", metadata=FAILED)], message_box(retry)

    def read_history(chat: list[dict]) -> tuple[list[dict], list[str]]:
        """The exchanges without errors, as messages, and their images."""
        history, images = [], []
        for message, reply in pairwise([*chat, {"role": "user"}]):
            if message["role"] == "assistant" or (reply.get("metadata") or {}).get("id") == FAILED["id"]:
                continue
            question, files = read_bubble(message)
            text = read_bubble(reply)[0].strip() if reply["role"] == "assistant" else ""  # stopped before any text
            history, images = generator.conversation(question, [*images, *files], history)
            history = [*history, {"role": "assistant", "content": text}]
        return history, images

    with gr.Blocks(title="mmchat", fill_height=True, delete_cache=(3600, 24 * 3600)) as page:
        with gr.Row(elem_id="header"):
            gr.HTML("<h1>mmchat</h1>", padding=False)
            new = gr.Button("New chat", size="sm", scale=0, min_width=100)
        layout = {"show_label": False, "scale": 1, "height": "100%", "placeholder": "Add an image and ask about it."}
        plain_text = {"render_markdown": False, "latex_delimiters": [], "buttons": [], "allow_file_downloads": False}
        chat = gr.Chatbot(elem_id="chat", examples=examples(), **layout, **plain_text)
        box = message_box()
        with gr.Accordion("Settings", open=False), gr.Row():
            temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0: always the most likely answer")
            length = gr.Slider(1, 512, 128, step=1, label="Max new tokens", info="limit of the answer's length")

        submitted = box.submit(submit, [box, chat], [chat, box], queue=False)
        example_submitted = chat.example_select(submit_example, chat, [chat, box], queue=False)
        inputs, outputs = [chat, temperature, length], [chat, box]
        answering = [
            event.success(answer, inputs, outputs, show_progress="hidden") for event in (submitted, example_submitted)
        ]
        stopped = [when(message_box, None, box, cancels=answering, queue=False) for when in (box.stop, new.click)]
        stopped[1].then(list, None, chat, queue=False)  # after cancelling, or late pieces would reappear
    return page


def bubble(role: str, text: str, files: Sequence[str] = (), metadata: dict | None = None) -> dict:
    """A chat message. Gradio interprets HTML even with Markdown turned off, so the text is escaped."""
    parts = [*({"path": file} for file in files), {"type": "text", "text": html.escape(text, quote=False)}]
    return {"role": role, "content": parts, "metadata": metadata}


def read_bubble(message: dict) -> tuple[str, list[str]]:
    """The text and the image files of a `bubble`."""
    parts = message["content"]
    text = "".join(html.unescape(part["text"]) for part in parts if part["type"] == "text")
    return text, [part["file"]["path"] for part in parts if part["type"] == "file"]


def message_box(value: dict | None = None, busy: bool = False) -> gr.MultimodalTextbox:
    """The input box. While the model is `busy` it has a stop button instead of a submit button."""
    state = {"interactive": not busy, "submit_btn": not busy, "stop_btn": busy}
    images = {"file_types": ["image"], "file_count": "multiple", "placeholder": "Ask about an image"}
    return gr.MultimodalTextbox(value, show_label=False, max_plain_text_length=100_000, **images, **state)


def examples() -> list[dict]:
    """Example questions about the held-out images of the quickstart, if it has run."""
    gr.set_static_paths([EXAMPLE_IMAGES])
    images = map(str, sorted(EXAMPLE_IMAGES.glob("*.png")))
    return [{"text": q, "files": [p], "icon": p} for p, q in zip(images, EXAMPLE_QUESTIONS, strict=False)]


def serve(model: Path, host: str, port: int) -> None:
    """Load a model and serve the page until interrupted.

    Raises:
        UserError: There is no such model directory, or the address cannot be used.
    """
    if not model.is_dir():
        raise UserError(
            f"model directory {model} does not exist; run scripts/quickstart.sh to train one, or set --model"
        )
    with socket.socket() as test_socket:  # checked before loading the model, which may take a while
        test_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test_socket.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {host}:{port} ({error}); set another --port or --host") from None
    quiet_libraries()
    from mmchat.inference import Generator

    page = build(Generator(model))
    # System fonts, so that the page loads none from another server.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="teal", neutral_hue="slate", **fonts)
    options = {"share": False, "ssr_mode": False, "footer_links": [], "quiet": True, "prevent_thread_lock": True}
    page.launch(server_name=host, server_port=port, theme=theme, css_paths=STYLE, **options)
    print(f"mmchat demo: http://{host}:{port} (stop with Ctrl-C)", flush=True)
    page.block_thread()


def main(argv: list[str] | None = None, prog: str = "app.py") -> None:
    example = "example:\n  python demo/app.py --model runs/quickstart/model --port 7860"
    parser = OneLineParser(prog=prog, description="Chat about images.", epilog=example, formatter_class=HelpFormatter)
    default = Path("runs/quickstart/model")
    parser.add_argument("--model", type=Path, default=default, metavar="DIR", help="model directory")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port to listen on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 accepts other machines")
    arguments = parser.parse_args(argv)
    with reporting():
        serve(arguments.model, arguments.host, arguments.port)


if __name__ == "__main__":
    main()
