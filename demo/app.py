"""A chat about pictures in the browser. Widgets only: every word comes from `mmchat.inference.Generator`.

    python demo/app.py --model runs/quickstart/model
"""

import argparse
import html
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ["GRADIO_RUN_HISTORY"] = "False"

import gradio as gr

from mmchat.cli.errors import reporting
from mmchat.cli.main import HelpFormatter, OneLineParser
from mmchat.cli.quiet import quiet_libraries
from mmchat.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "runs/quickstart/model"
EXAMPLE_PICTURES = ROOT / "data/quickstart/heldout"
EXAMPLE_QUESTIONS = (
    "How many digits are there?",
    "Describe the picture.",
    "Which digit is drawn largest?",
    "List the digits from left to right.",
)
QUESTION_TO_A_BARE_PICTURE = "Describe the picture."
PLACEHOLDER = "Ask about a picture"
FAILED = "failed"
"""Marks a bubble that holds an error: the model is told neither of it nor of its question."""

# System fonts, so that the page asks no other server for anything.
THEME = gr.themes.Default(
    primary_hue="teal", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
CSS = Path(__file__).with_name("style.css")


def build(generator) -> gr.Blocks:
    """The page. Its chat is the only record of a conversation: what is cleared there is forgotten."""

    def ask(message: dict, chat: list[dict]) -> tuple[list[dict], gr.MultimodalTextbox]:
        text = message["text"].strip() or (QUESTION_TO_A_BARE_PICTURE if message["files"] else "")
        if not text:
            raise gr.Error("Type a question, or add a picture.", title="Nothing to ask", print_exception=False)
        return [*chat, bubble("user", text, message["files"])], busy_box()

    def pick(chosen: gr.SelectData, chat: list[dict]) -> tuple[list[dict], gr.MultimodalTextbox]:
        return ask({"text": chosen.value["text"], "files": [file["path"] for file in chosen.value["files"]]}, chat)

    def answer(chat: list[dict], temperature: float, max_new_tokens: int) -> Iterator[tuple]:
        question, files = split(chat[-1])
        reply = ""
        try:
            history, pictures = told(chat[:-1])
            options = {"temperature": temperature, "max_new_tokens": max_new_tokens}
            for piece in generator.stream(question, [*pictures, *files], history, **options):
                reply += piece
                yield [*chat, bubble("assistant", reply)], gr.skip()
            if not reply.strip():
                raise UserError("the model ended its answer before the first word")
            yield gr.skip(), idle_box()
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
            text = f"⚠ {error}" if isinstance(error, UserError) else f"⚠ {type(error).__name__}: {error}"
            for file in files:
                text = text.replace(file, Path(file).name)
            # The question goes back into its box, to be mended and sent again.
            failed = {**bubble("assistant", text), "metadata": {"id": FAILED}}
            yield [*chat, failed], idle_box({"text": question, "files": files})

    def told(chat: list[dict]) -> tuple[list[dict], list[str]]:
        """The exchanges that the model knows of, and their pictures, as the generator reads them."""
        history, pictures = [], []
        for asked, replied in pairwise([*chat, {"role": "user"}]):
            if asked["role"] == "assistant" or (replied.get("metadata") or {}).get("id") == FAILED:
                continue
            question, files = split(asked)
            reply = split(replied)[0] if replied["role"] == "assistant" else ""  # stopped before the first word
            history, pictures = generator.conversation(question, [*pictures, *files], history)
            history = [*history, {"role": "assistant", "content": reply.strip()}]
        return history, pictures

    with gr.Blocks(title="mmchat", fill_height=True, delete_cache=(3600, 24 * 3600)) as page:
        with gr.Row(elem_id="header"):
            gr.HTML("<h1>mmchat</h1>", padding=False)
            new = gr.Button("New chat", size="sm", scale=0, min_width=100)
        chat = gr.Chatbot(
            show_label=False, scale=1, height="100%", render_markdown=False, latex_delimiters=[], buttons=[],
            allow_file_downloads=False, placeholder="Add a picture and ask about it.", examples=examples(),
        )
        box = gr.MultimodalTextbox(
            file_types=["image"], file_count="multiple", show_label=False, placeholder=PLACEHOLDER,
            max_plain_text_length=100_000,
        )
        with gr.Accordion("Settings", open=False), gr.Row():
            temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0: always the likeliest answer")
            length = gr.Slider(1, 512, 128, step=1, label="Max new tokens", info="the longest answer")

        asked = (box.submit(ask, [box, chat], [chat, box], queue=False),
                 chat.example_select(pick, chat, [chat, box], queue=False))
        answering = [
            event.success(answer, [chat, temperature, length], [chat, box], show_progress="hidden") for event in asked
        ]
        box.stop(idle_box, None, box, cancels=answering, queue=False)
        new.click(lambda: ([], idle_box()), None, [chat, box], cancels=answering, queue=False)
    return page


def bubble(role: str, text: str, files: Sequence[str] = ()) -> dict:
    """A message of the chat. Gradio reads HTML even where Markdown is off, so text is escaped to stay text."""
    parts = [*({"path": file} for file in files), {"type": "text", "text": html.escape(text, quote=False)}]
    return {"role": role, "content": parts}


def split(message: dict) -> tuple[str, list[str]]:
    """Text and picture files that `bubble` was given."""
    parts = message["content"]
    text = "".join(html.unescape(part["text"]) for part in parts if part["type"] == "text")
    return text, [part["file"]["path"] for part in parts if part["type"] == "file"]


def idle_box(value: dict | None = None) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(value, interactive=True, submit_btn=True, stop_btn=False, placeholder=PLACEHOLDER)


def busy_box() -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(None, interactive=False, submit_btn=False, stop_btn=True, placeholder="")


def examples() -> list[dict]:
    pictures = sorted(EXAMPLE_PICTURES.glob("*.png"))
    return [
        {"text": question, "files": [str(picture)], "icon": str(picture)}
        for picture, question in zip(pictures, EXAMPLE_QUESTIONS, strict=False)
    ]


def main(words: list[str] | None = None) -> None:
    parser = OneLineParser(
        description="Chat about pictures in the browser.",
        epilog="example:\n  python demo/app.py --model runs/quickstart/model --port 7860",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=MODEL, metavar="DIR", help="model directory")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port of the page")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    arguments = parser.parse_args(words)
    with reporting():
        serve(arguments.model, arguments.host, arguments.port)


def serve(model: Path, host: str, port: int) -> None:
    if not model.is_dir():
        raise UserError(f"there is no model in {model}; make one with scripts/quickstart.sh, or name one with --model DIR")
    check_free(host, port)
    quiet_libraries()
    from mmchat.inference import Generator

    page = build(Generator(model))
    page.launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, show_error=True,
        ssr_mode=False, footer_links=[], theme=THEME, css_paths=CSS,
    )
    print(f"mmchat demo: http://{host}:{port} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def check_free(host: str, port: int) -> None:
    """Before the model is loaded, because that may take a while."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; name another with --port") from None


if __name__ == "__main__":
    sys.exit(main())
