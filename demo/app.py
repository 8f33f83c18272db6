"""A chat about images in the browser. Widgets only: every word comes from `mmchat.inference.Generator`."""

import html
import os
import socket
import traceback
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

# Read when gradio is imported: it shall ask no other server for anything, and keep no log of calls.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}

import gradio as gr

from mmchat.command_line.arguments import HelpFormatter, OneLineParser
from mmchat.command_line.errors import reporting
from mmchat.command_line.quiet import quiet_libraries
from mmchat.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE_IMAGES = ROOT / "data/quickstart/heldout"
DESCRIBE, COUNT = "Describe the image.", "How many digits are there?"
EXAMPLE_QUESTIONS = (COUNT, DESCRIBE, "Which digit is drawn largest?", "Which digit is farthest to the left?")
FAILED = {"id": "failed"}  # marks the bubble of an error: the model is told neither of it nor of its question


def build(generator) -> gr.Blocks:
    """The page. Its chat is the only record of a conversation: what is cleared there is forgotten."""

    def ask(message: dict, chat: list[dict]) -> tuple[list[dict], gr.MultimodalTextbox]:
        text = message["text"].strip() or (DESCRIBE if message["files"] else "")
        if not text:
            raise gr.Error("Type a question, or add an image.", title="Nothing to ask", print_exception=False)
        return [*chat, bubble("user", text, message["files"])], message_box(busy=True)

    def pick(example: gr.SelectData, chat: list[dict]) -> tuple[list[dict], gr.MultimodalTextbox]:
        return ask({"text": example.value["text"], "files": [file["path"] for file in example.value["files"]]}, chat)

    def answer(chat: list[dict], temperature: float, max_new_tokens: int) -> Iterator[tuple]:
        question, files = read(chat[-1])
        reply = ""
        try:
            history, images = told(chat[:-1])
            options = {"temperature": temperature, "max_new_tokens": max_new_tokens}
            for piece in generator.stream(question, [*images, *files], history, **options):
                reply += piece
                yield [*chat, bubble("assistant", reply)], gr.skip()
            if not reply.strip():
                raise UserError("the model ended its answer before the first word")
            yield gr.skip(), message_box()
        except Exception as error:
            text = str(error)
            if not isinstance(error, UserError):
                traceback.print_exc()
                text = f"{type(error).__name__}: {error}"
            for file in files:
                text = text.replace(file, Path(file).name)
            again = {"text": question, "files": files}  # back into the box, to be mended and sent again
            yield [*chat, bubble("assistant", f"⚠ {text}", metadata=FAILED)], message_box(again)

    def told(chat: list[dict]) -> tuple[list[dict], list[str]]:
        """The exchanges that the model knows of, and their images, as the generator reads them."""
        history, images = [], []
        for asked, replied in pairwise([*chat, {"role": "user"}]):
            if asked["role"] == "assistant" or (replied.get("metadata") or {}).get("id") == FAILED["id"]:
                continue
            question, files = read(asked)
            reply = read(replied)[0].strip() if replied["role"] == "assistant" else ""  # stopped before a word
            history, images = generator.conversation(question, [*images, *files], history)
            history = [*history, {"role": "assistant", "content": reply}]
        return history, images

    with gr.Blocks(title="mmchat", fill_height=True, delete_cache=(3600, 24 * 3600)) as page:
        with gr.Row(elem_id="header"):
            gr.HTML("<h1>mmchat</h1>", padding=False)
            new = gr.Button("New chat", size="sm", scale=0, min_width=100)
        looks = {"show_label": False, "scale": 1, "height": "100%", "placeholder": "Add an image and ask about it."}
        plain = {"render_markdown": False, "latex_delimiters": [], "buttons": [], "allow_file_downloads": False}
        chat = gr.Chatbot(elem_id="chat", examples=examples(), **looks, **plain)
        box = message_box()
        with gr.Accordion("Settings", open=False), gr.Row():
            temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0: always the likeliest answer")
            length = gr.Slider(1, 512, 128, step=1, label="Max new tokens", info="the longest answer")

        asked = box.submit(ask, [box, chat], [chat, box], queue=False)
        picked = chat.example_select(pick, chat, [chat, box], queue=False)
        how = {"fn": answer, "inputs": [chat, temperature, length], "outputs": [chat, box], "show_progress": "hidden"}
        answering = [asked.success(**how), picked.success(**how)]
        stopped = [when(message_box, None, box, cancels=answering, queue=False) for when in (box.stop, new.click)]
        stopped[1].then(list, None, chat, queue=False)  # once cancelled, or late words would come back
    return page


def bubble(role: str, text: str, files: Sequence[str] = (), metadata: dict | None = None) -> dict:
    """A message of the chat. Gradio reads HTML even where Markdown is off, so text is escaped to stay text."""
    parts = [*({"path": file} for file in files), {"type": "text", "text": html.escape(text, quote=False)}]
    return {"role": role, "content": parts, "metadata": metadata}


def read(message: dict) -> tuple[str, list[str]]:
    """Text and image files of a `bubble`."""
    parts = message["content"]
    text = "".join(html.unescape(part["text"]) for part in parts if part["type"] == "text")
    return text, [part["file"]["path"] for part in parts if part["type"] == "file"]


def message_box(value: dict | None = None, busy: bool = False) -> gr.MultimodalTextbox:
    state = {"interactive": not busy, "submit_btn": not busy, "stop_btn": busy}
    images = {"file_types": ["image"], "file_count": "multiple", "placeholder": "Ask about an image"}
    return gr.MultimodalTextbox(value, show_label=False, max_plain_text_length=100_000, **images, **state)


def examples() -> list[dict]:
    gr.set_static_paths([EXAMPLE_IMAGES])
    images = map(str, sorted(EXAMPLE_IMAGES.glob("*.png")))
    return [{"text": q, "files": [p], "icon": p} for p, q in zip(images, EXAMPLE_QUESTIONS, strict=False)]


def serve(model: Path, host: str, port: int) -> None:
    if not model.is_dir():
        raise UserError(f"there is no model in {model}; make one with scripts/quickstart.sh, or use --model DIR")
    with socket.socket() as probe:  # before the model is loaded, because that may take a while
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {host}:{port} ({error}); name another with --port or --host") from None
    quiet_libraries()
    from mmchat.inference import Generator

    page = build(Generator(model))
    # Fonts that every system has, so that the page asks no other server for one.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="teal", neutral_hue="slate", **fonts)
    how = {"share": False, "ssr_mode": False, "footer_links": [], "quiet": True, "prevent_thread_lock": True}
    page.launch(server_name=host, server_port=port, theme=theme, css_paths=ROOT / "demo/style.css", **how)
    print(f"mmchat demo: http://{host}:{port} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def main(argv: list[str] | None = None, prog: str = "app.py") -> None:
    example = "example:\n  python demo/app.py --model runs/quickstart/model --port 7860"
    parser = OneLineParser(prog=prog, description="Chat about images.", epilog=example, formatter_class=HelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "runs/quickstart/model", metavar="DIR", help="folder")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="port of the page")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in")
    arguments = parser.parse_args(argv)
    with reporting():
        serve(arguments.model, arguments.host, arguments.port)


if __name__ == "__main__":
    main()
